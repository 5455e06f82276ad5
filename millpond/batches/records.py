"""The records of batches: what is kept of one, and what a turn of work on it gives and gets."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

PLACES_A_BYTE = 8


class BatchStatus(StrEnum):
    """In the order of a batch's life; the words are OpenAI's."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


ENDED = {
    BatchStatus.FAILED,
    BatchStatus.COMPLETED,
    BatchStatus.EXPIRED,
    BatchStatus.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class NewBatch:
    """``tenant_limit`` and ``tenant_bytes`` are those of the key that asks, see `NewJob`."""

    tenant: str
    endpoint: str
    input_file: str
    window: str
    window_s: float
    metadata: Mapping[str, str] | None
    output_ttl_s: float | None
    tenant_limit: int | None
    tenant_bytes: int | None
    webhook_url: str | None = None


@dataclass(frozen=True, slots=True)
class BatchProblem:
    """Why a batch failed. ``line`` is the number of the input's line, ``param`` the field."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """Times are ms of the server's clock. ``at`` has one for each status that the batch has reached.

    ``cursor``: rows before that place have been submitted, or are about to be. ``outcome`` is set once
    every row has ended. ``turn`` is the last one that began, ``leased_ms`` when its lease ends.
    """

    id: str
    tenant: str
    status: BatchStatus
    endpoint: str
    input_file: str
    window: str
    created_ms: int
    expires_ms: int
    at: Mapping[BatchStatus, int]
    metadata: Mapping[str, str] | None
    problems: Sequence[BatchProblem]
    models: Sequence[str]
    queues: Sequence[str]
    total: int
    completed: int
    failed: int
    prompt_tokens: int
    output_tokens: int
    output_file: str | None
    error_file: str | None
    output_ttl_s: float | None
    tenant_limit: int | None
    tenant_bytes: int | None
    cursor: int
    outcome: BatchStatus | None
    turn: int
    leased_ms: int
    webhook_url: str | None = None

    @property
    def ended(self) -> bool:
        return self.status in ENDED


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to work on a batch. ``clean``: the turn before it ended in order, so all rows before the
    cursor are in their queues."""

    batch: str
    number: int
    clean: bool


@dataclass(frozen=True, slots=True)
class Part:
    """An object with some lines of an output."""

    object_name: str
    num_bytes: int
    rows: int


@dataclass(frozen=True, slots=True)
class RunningState:
    """What a renewal tells. ``left_s`` is until the batch expires."""

    status: BatchStatus
    left_s: float


class TurnOverError(Exception):
    """Somebody else has the batch now, or it has ended: write nothing more."""


def new_batch_id() -> str:
    return f"batch_{os.urandom(12).hex()}"


def is_done(bitmap: bytes, place: int) -> bool:
    byte = place // PLACES_A_BYTE
    return byte < len(bitmap) and bool(bitmap[byte] & 0x80 >> place % PLACES_A_BYTE)


def shown(problem: BatchProblem) -> dict[str, Any]:
    return {name: getattr(problem, name) for name in ("code", "message", "line", "param")}


def read_record(id: str, found: Mapping[bytes, bytes]) -> BatchRecord:
    fields = {name.decode(): value.decode() for name, value in found.items()}

    def number(name: str) -> int:
        return int(fields.get(name, 0))

    ttl_s = fields.get("output_ttl_s")
    outcome = fields.get("outcome")
    return BatchRecord(
        id=id,
        tenant=fields["tenant"],
        status=BatchStatus(fields["status"]),
        endpoint=fields["endpoint"],
        input_file=fields["input"],
        window=fields["window"],
        created_ms=number("created"),
        expires_ms=number("expires"),
        at={s: number(f"at:{s}") for s in BatchStatus if f"at:{s}" in fields},
        metadata=orjson.loads(fields["metadata"]) if "metadata" in fields else None,
        problems=[BatchProblem(**p) for p in orjson.loads(fields.get("problems", "[]"))],
        models=orjson.loads(fields.get("models", "[]")),
        queues=orjson.loads(fields.get("queues", "[]")),
        total=number("total"),
        completed=number("completed"),
        failed=number("failed"),
        prompt_tokens=number("prompt_tokens"),
        output_tokens=number("output_tokens"),
        output_file=fields.get("output"),
        error_file=fields.get("errors"),
        output_ttl_s=None if ttl_s is None else float(ttl_s),
        tenant_limit=int(fields["tenant_limit"]) if "tenant_limit" in fields else None,
        tenant_bytes=int(fields["tenant_bytes"]) if "tenant_bytes" in fields else None,
        cursor=number("cursor"),
        outcome=None if outcome is None else BatchStatus(outcome),
        turn=number("turn"),
        leased_ms=number("lease"),
        webhook_url=fields.get("webhook_url"),
    )
