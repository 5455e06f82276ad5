"""The functions that RQ calls. Each takes a batch's turn, does a slice, and enqueues what comes next."""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from background.batches.advancing import advance as advance_batch
from background.batches.checking import GivenUpError
from background.batches.finalizing import finalize as finalize_batch
from background.batches.telling import tell_webhooks
from background.batches.validating import validate as validate_batch
from background.batches.workplace import Workplace, open_workplace
from background.worker import Running, running
from millpond.batches.batches import LEASE_S
from millpond.batches.records import BatchRecord, Turn, TurnOverError
from millpond.batches.steps import next_step

# It tells whether the rows before the batch's cursor are all in their queues.
Slice = Callable[[Workplace, BatchRecord, Turn], Awaitable[bool]]

log = structlog.get_logger("millpond.background")


def validate(batch: str, after_turn: int) -> None:
    asyncio.run(_work(running(), batch, after_turn, validate_batch))


def advance(batch: str, after_turn: int) -> None:
    asyncio.run(_work(running(), batch, after_turn, advance_batch))


def finalize(batch: str, after_turn: int) -> None:
    asyncio.run(_work(running(), batch, after_turn, finalize_batch))


def look_after() -> None:
    """Take up batches that nobody works on or told of, and clean the storage."""
    asyncio.run(_look_after(running()))


async def _work(process: Running, id: str, after_turn: int, work: Slice) -> None:
    async with open_workplace(process) as at:
        turn = await at.batches.take(id, after_turn)
        batch = None if turn is None else await at.batches.find(id)
        if turn is None or batch is None:
            return
        try:
            clean = await work(at, batch, turn)
        except TurnOverError:
            log.warning("batch_turn_lost", batch=id, turn=turn.number)
            return
        except GivenUpError:
            clean = False
        batch = await at.batches.find(id)
        if batch is not None and not batch.ended:
            await at.batches.release(turn, clean=clean)
            process.enqueue(next_step(batch))
        else:
            await tell_webhooks(at.batches, at.deliveries)


async def _look_after(process: Running) -> None:
    async with open_workplace(process) as at:
        now_ms = await at.batches.now_ms()
        left_ms = [batch.leased_ms - now_ms for batch in await at.batches.unfinished()]
        held_ms = [ms for ms in left_ms if 0 < ms <= LEASE_S * 1000]
        if held_ms:  # by another worker, or by one that was killed
            await asyncio.sleep(min(held_ms) / 1000)
        now_ms = await at.batches.now_ms()
        for batch in await at.batches.unfinished():
            if batch.leased_ms <= now_ms:
                process.enqueue(next_step(batch))
        await tell_webhooks(at.batches, at.deliveries)
        objects = await at.files.sweep()
        if objects:
            await asyncio.to_thread(at.storage.remove, objects)
            await at.files.removed(objects)
