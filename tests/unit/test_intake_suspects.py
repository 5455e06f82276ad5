"""A worker whose claims give nothing, for suspects or for jobs of others, looks again, but not at once."""

import asyncio
import itertools
import time

import pytest

from millpond.queue.claims import Claim
from tests.unit.test_intake import FULL, SLOTS, Backlog, Busy, busy_with
from worker import intake
from worker.engines.base import Capacity

ROOM = Capacity(free_slots=SLOTS - 1, free_tokens=FULL.free_tokens - 100)
LOOK_S = 0.02


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "IDLE_LOOK_S", LOOK_S)
    monkeypatch.setattr(intake, "DRAIN_LOOK_S", LOOK_S)


class Closed(Backlog):
    """Its jobs are not for this worker; ``draining``: they are suspects that it is to drain for."""

    draining = False

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.claimed_s: list[float] = []

    async def claim(self, *args: object, **kwargs: object) -> Claim:
        self.counts.append(1)
        self.claimed_s.append(time.monotonic())
        return Claim([], left=0, alone=False, draining=self.draining)

    async def wait_for_work(self, timeout_s: float) -> bool:
        await asyncio.sleep(timeout_s)
        return False


async def until_claims(queue: Backlog, number: int) -> None:
    async with asyncio.timeout(10):
        while len(queue.counts) < number:
            await asyncio.sleep(0.001)


async def test_a_draining_worker_takes_nothing_and_says_so_again_in_a_while() -> None:
    queue = Closed(3)
    queue.draining = True
    busy = Busy(queue)
    async with asyncio.timeout(10):
        while len(queue.counts) < 5:
            assert await busy.refill(ROOM) == []
            assert busy.intake._shut, "its free slots are for nobody"
            busy.intake.look_ahead(9)
            await asyncio.sleep(0.001)
    # The first look may be repeated at once, by the one ahead.
    later_s = queue.claimed_s[1:]
    assert all(b - a >= LOOK_S for a, b in itertools.pairwise(later_s))
    assert not busy.intake._wanted.is_set(), "wake-ups are for others"


async def test_an_idle_worker_does_not_spin_on_jobs_that_are_not_for_it() -> None:
    queue = Closed(3)
    busy = Busy(queue)
    began_s = time.monotonic()
    window = asyncio.create_task(busy.intake.next_window())
    await until_claims(queue, 4)
    assert time.monotonic() - began_s >= 3 * LOOK_S
    busy.intake.close()
    await window


async def test_a_worker_with_room_looks_without_being_woken() -> None:
    """The token that told of a job may have gone to somebody who could not take it."""
    queue = Closed(0)
    busy = Busy(queue)
    listener = asyncio.create_task(busy.intake.listen())
    async with asyncio.timeout(10):
        while len(queue.counts) < 3:
            await busy.refill(ROOM)
            await asyncio.sleep(0.001)
    listener.cancel()
    await asyncio.gather(listener, return_exceptions=True)


async def test_a_full_worker_does_not_look() -> None:
    queue = Backlog(SLOTS)
    busy = await busy_with(queue)
    assert await busy.refill(Capacity(0, 0)) == []
    assert queue.counts == [SLOTS]
