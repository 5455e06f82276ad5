"""What a worker has in its hands: claimed jobs, and what becomes of its leases and its writes."""

import uuid
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """One job in a worker's hands, for as long as its lease lasts. ``body`` is a stored JobRequest.

    ``predicted_tokens`` is output that will be enough in nine of ten such jobs; None: nothing is known.
    """

    id: str
    fence: int
    attempt: int
    claimed_ms: int
    queue_wait_ms: int
    body: bytes
    predicted_tokens: int | None = None

    @property
    def row(self) -> str:
        """A name for this very claim: a job that comes back is another row."""
        return f"{self.id}/{self.fence}"


@dataclass(frozen=True, slots=True)
class Claim:
    """A window's worth of jobs, and how many were left that a claim could take.

    ``alone``: they are suspects, so run nothing beside them.
    """

    jobs: list[ClaimedJob]
    left: int
    alone: bool


def new_nonce() -> str:
    """A name for one claim."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Renewal:
    """What became of held leases: ids that are no longer ours, and ids that are to be ended."""

    lost: frozenset[str]
    cancelled: frozenset[str]
    expired: frozenset[str]


class Commit(StrEnum):
    """What came of a fenced write. LOST: another holder has the job, and nothing was written."""

    STORED = "stored"
    KNOWN = "known"
    RETRY = "retry"
    BURIED = "buried"
    LOST = "lost"
