"""The last slice of a batch: the parts of its files are joined, and it ends."""

import asyncio

import structlog

from background.batches.validating import UNRECORDED_S
from background.batches.workplace import Workplace, kept
from millpond.batches.records import BatchRecord, Part, Turn

log = structlog.get_logger("millpond.background")


async def finalize(at: Workplace, batch: BatchRecord, turn: Turn) -> bool:
    """Raises TurnOverError, StorageUnavailableError."""
    assert batch.outcome is not None
    async with kept(at.batches, turn):
        output = await _joined(at, turn, batch.output_file, "output")
        errors = await _joined(at, turn, batch.error_file, "errors")
        ttl_s = at.settings.file_ttl_s if batch.output_ttl_s is None else batch.output_ttl_s
        await at.batches.end(turn, batch.outcome, file_ttl_s=ttl_s, output=output, errors=errors)
    log.info(
        "batch_ended",
        batch=batch.id,
        status=batch.outcome,
        completed=batch.completed,
        failed=batch.failed,
    )
    return True


async def _joined(at: Workplace, turn: Turn, file: str | None, kind: str) -> Part | None:
    """One object of all parts; None if there is nothing to join."""
    parts = [] if file is None else await at.files.parts(file)
    if len(parts) < 2:
        return None
    name = f"{turn.batch}-{turn.number}-{kind}"
    await at.files.doom(name, in_s=UNRECORDED_S)

    def join() -> None:
        with at.storage.create(name) as target:
            for block in at.storage.blocks(name for name, _ in parts):
                target.write(block)

    await asyncio.to_thread(join)
    return Part(name, sum(num_bytes for _, num_bytes in parts), 0)
