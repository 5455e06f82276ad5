"""What a worker's batch looks like now: published several times a second while somebody watches."""

from pydantic import Field

from millpond.messages.fields import PROTOCOL_VERSION, Stored


class RowNow(Stored):
    """One row of the batch. ``tokens`` are generated so far, of ``max_tokens``; 0 while it is prefilled."""

    job: str
    index: int
    tokens: int
    max_tokens: int


class EndedRow(Stored):
    """A row that ended since the last message, ``ended_ms_ago``, after ``ran_ms`` in its slot, of which
    ``first_token_ms`` until its job's first token; that is absent if there was none."""

    job: str
    index: int
    tokens: int
    ran_ms: int
    first_token_ms: int | None = None
    ended_ms_ago: int


class WorkerRows(Stored):
    """``rows`` are in the order in which they came, ``waiting`` are claimed jobs that have no slot yet.

    ``ended`` are there because most of the short rows begin and end between two messages.
    """

    v: int = PROTOCOL_VERSION
    worker: str
    slots: int
    waiting: int
    jobs_total: int
    rows: list[RowNow]
    ended: list[EndedRow] = Field(default_factory=list)
