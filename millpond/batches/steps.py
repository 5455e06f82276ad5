"""What has to be done next for a batch, as a job for RQ. Pure."""

from millpond.background_jobs import BATCHES, BackgroundJob
from millpond.batches.records import BatchRecord, BatchStatus

# Of the whole input file, and of the joining of an output: 200 MB from a slow storage.
WHOLE_FILE_S = 1_800
SLICE_TIMEOUT_S = 120


def next_step(batch: BatchRecord) -> BackgroundJob:
    """Harmless if it is enqueued twice: a batch that has been taken since is left alone."""
    if batch.status is BatchStatus.VALIDATING:
        return _step("validate", batch, WHOLE_FILE_S)
    if batch.outcome is not None:
        return _step("finalize", batch, WHOLE_FILE_S)
    return _step("advance", batch, SLICE_TIMEOUT_S)


def _step(name: str, batch: BatchRecord, timeout_s: int) -> BackgroundJob:
    return BackgroundJob(
        BATCHES, f"background.batches.tasks.{name}", (batch.id, batch.turn), timeout_s
    )
