"""The first slice of a batch: check its file, and put its rows in order."""

import asyncio
import tempfile

import structlog

from background.batches.checking import CheckedFile, GivenUpError, check_file
from background.batches.workplace import Workplace, kept
from millpond.batches.records import BatchProblem, BatchRecord, BatchStatus, Turn
from millpond.queue.directory import QueueDirectory

# Objects that no record names by then were written by somebody who was killed.
UNRECORDED_S = 3_600.0

log = structlog.get_logger("millpond.background")


async def validate(at: Workplace, batch: BatchRecord, turn: Turn) -> bool:
    """Ends with the batch in progress or failed. Raises TurnOverError and GivenUpError."""
    parts = await at.files.parts(batch.input_file)
    if not parts:
        gone = BatchProblem(
            "file_not_found", f"{batch.input_file} was deleted", None, "input_file_id"
        )
        await _fail(at, turn, [gone])
        return True
    queues = await queues_by_model(at)
    with tempfile.TemporaryFile() as spool:
        async with kept(at.batches, turn) as over:
            checked = await asyncio.to_thread(
                check_file,
                at.storage.blocks([name for name, _ in parts]),
                spool,
                route=batch.endpoint,
                queues=queues,
                home=at.settings.queue,
                given_up=lambda: over.is_set() or at.stopping.is_set(),
            )
            if checked.problems:
                await _fail(at, turn, checked.problems, checked.more_problems)
                return True
            objects = await _store(at, turn, checked)
            status = await at.batches.start(
                turn,
                total=checked.total,
                models=sorted(checked.models),
                queues=sorted({key.queue for key in checked.keys}),
                objects=objects,
            )
    if status is BatchStatus.IN_PROGRESS:  # and not cancelled meanwhile
        log.info("batch_started", batch=batch.id, rows=checked.total)
    return True


async def queues_by_model(at: Workplace) -> dict[str, str]:
    """As the API has them: those that workers announced, and the one of the settings."""
    announced = await QueueDirectory(at.redis).all()
    queues = {about.model: name for name, about in announced.items()}
    home = at.settings.queue
    if home not in announced:
        preset = await asyncio.to_thread(at.settings.preset)
        queues.setdefault(preset.name, home)
    return queues


async def _store(at: Workplace, turn: Turn, checked: CheckedFile) -> list[tuple[str, int]]:
    objects = []
    for number, (first, data) in enumerate(checked.objects()):
        name = f"{turn.batch}-{turn.number}-rows-{number}"
        await at.files.doom(name, in_s=UNRECORDED_S)
        await asyncio.to_thread(at.storage.write, name, data)
        objects.append((name, first))
        if at.stopping.is_set():
            raise GivenUpError
    return objects


async def _fail(at: Workplace, turn: Turn, problems: list[BatchProblem], more: int = 0) -> None:
    if more:
        problems = [*problems, BatchProblem("more_problems", f"and {more} more lines are bad")]
    await at.batches.end(
        turn, BatchStatus.FAILED, file_ttl_s=at.settings.file_ttl_s, problems=problems
    )
    log.info("batch_failed", batch=turn.batch, problems=len(problems))
