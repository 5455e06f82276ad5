"""What a worker's batch looks like now: published several times a second while somebody watches."""

from millpond.messages.fields import PROTOCOL_VERSION, Stored


class RowNow(Stored):
    """One row of the batch. ``tokens`` are generated so far, of ``max_tokens``; 0 while it is prefilled."""

    job: str
    index: int
    tokens: int
    max_tokens: int


class WorkerRows(Stored):
    """``rows`` are in the order in which they came, ``waiting`` are claimed jobs that have no slot yet."""

    v: int = PROTOCOL_VERSION
    worker: str
    slots: int
    waiting: int
    jobs_total: int
    rows: list[RowNow]
