"""What a worker gets from the queue: claimed jobs, and the outcome of its renewals and writes."""

import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class KeptText:
    """One of a job's texts as an earlier claim left it: how many characters of its text and of its reasoning
    were streamed, and its tokens, which are a worker's to read."""

    said_chars: int
    thought_chars: int
    tokens: bytes


@dataclass(frozen=True, slots=True)
class KeptTokens:
    """What a worker adds to the tokens kept of a job's text ``index``; it begins at byte ``offset``."""

    id: str
    index: int
    offset: int
    tokens: bytes


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """An in-flight job, held for as long as its lease lasts. ``body`` is a stored JobRequest.

    ``predicted_tokens`` is the 90th percentile of such jobs' output; None: nothing is known yet.
    ``traceparent`` is the trace that it was submitted in, as W3C's header has it.
    ``kept`` has an entry for each text of a job that goes on where an earlier claim has stopped, and is
    empty else.
    """

    id: str
    fence: int
    attempt: int
    claimed_ms: int
    queue_wait_ms: int
    body: bytes
    predicted_tokens: int | None = None
    traceparent: str | None = None
    kept: tuple[KeptText, ...] = ()

    @property
    def row(self) -> str:
        """Names this claim of the job: a later claim of the same job is another row."""
        return f"{self.id}/{self.fence}"


@dataclass(frozen=True, slots=True)
class Claim:
    """The jobs of one claim, and how many more such a claim could have taken.

    ``alone``: these are suspects; run nothing beside them. ``draining``: take nothing more until all
    that runs has ended, since suspects have waited for too long. ``missing`` jobs were found without
    a record, and struck off.
    """

    jobs: list[ClaimedJob]
    left: int
    alone: bool
    draining: bool = False
    missing: int = 0


class Swept(NamedTuple):
    """What one sweep has done; ``missing`` as for a claim."""

    leases: int
    retries: int
    deadlines: int
    missing: int


def new_nonce() -> str:
    """Identifies one call, so that it can be repeated: 96 random bits."""
    return secrets.token_urlsafe(12)


class Lease(StrEnum):
    """The outcome of a renewal. CANCELLED and EXPIRED jobs are still held; end them."""

    HELD = "held"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    LOST = "lost"


class Commit(StrEnum):
    """The outcome of a fenced write. LOST: another worker holds the job; nothing was written."""

    STORED = "stored"
    KNOWN = "known"
    RETRY = "retry"
    BURIED = "buried"
    LOST = "lost"
