"""What a worker claims, for its free slots and ahead of them, and when that is ready for the engine."""

import asyncio
import threading

import pytest

from millpond.errors import QueueUnavailableError
from millpond.messages import JobRequest
from millpond.models.presets import PRESETS
from millpond.models.tokenization import ByteTokenizer
from millpond.queue.claims import Claim, ClaimedJob
from worker.engines.base import Capacity, EngineInfo
from worker.intake import INLINE_BYTES, Intake
from worker.jobs.job_state import JobState
from worker.jobs.job_table import JobTable
from worker.jobs.preparation import Preparation
from worker.rates import Rates
from worker.window import WindowPolicy

SLOTS = 64
FULL = Capacity(free_slots=SLOTS, free_tokens=SLOTS * 1000)
NO_SLOT = Capacity(free_slots=0, free_tokens=0)
PROMPT = "ten bytes."


class Backlog:
    """A queue of so many jobs, of which `Intake` sees what it claims."""

    def __init__(self, num_jobs: int, max_tokens: int = 90, prompt: str = PROMPT) -> None:
        body = JobRequest(prompt=prompt, raw=True, max_tokens=max_tokens).to_json()
        self.jobs = [
            ClaimedJob(f"j{i}", i + 1, 1, claimed_ms=0, queue_wait_ms=0, body=body)
            for i in range(num_jobs)
        ]
        self.counts: list[int] = []
        self.last: tuple[str | None, list[ClaimedJob]] = (None, [])
        self.answering = asyncio.Event()
        self.answering.set()
        self.answers_lost = 0  # so many of the next

    async def claim(
        self,
        worker: str,
        count: int,
        *,
        budget_tokens: int,
        capacity_tokens: int,
        slots: int,
        row_tokens: int,
        nonce: str | None = None,
    ) -> Claim:
        await self.answering.wait()
        if nonce != self.last[0]:
            self.counts.append(count)
            taken = self.jobs[:count] if budget_tokens >= 100 * count else []
            del self.jobs[: len(taken)]
            self.last = (nonce, taken)
        if self.answers_lost:
            self.answers_lost -= 1
            raise QueueUnavailableError("the answer is lost")
        return Claim(jobs=self.last[1], left=len(self.jobs), alone=False)

    async def waiting(self) -> int:
        return len(self.jobs)


def table_of(queue: Backlog) -> JobTable:
    return JobTable(
        queue,  # type: ignore[arg-type]
        ByteTokenizer(),
        PRESETS["simulated"],
        worker_id="w",
        group_padded_tokens=4096,
        delta_interval_s=0.05,
        checkpoint_tokens=0,
        engine_info=lambda: EngineInfo("simulated", "simulated", "m", "none", "none", SLOTS, 1000),
        rates=Rates(0.0),
    )


class Busy:
    """An intake with its table, and what the engine is given by it."""

    def __init__(self, queue: Backlog, tokenizer: ByteTokenizer | None = None) -> None:
        self.jobs = table_of(queue)
        self.intake = Intake(
            queue,  # type: ignore[arg-type]
            Preparation(PRESETS["simulated"], tokenizer or ByteTokenizer(), SLOTS),
            self.jobs,
            worker_id="w",
            policy=WindowPolicy.hybrid(1, SLOTS, 0.1),
            full=FULL,
            row_tokens=1000,
        )
        self.intake._work.set()

    @property
    def held(self) -> list[str]:
        return [job.id for job in self.jobs.in_flight]

    async def refill(self, capacity: Capacity) -> list[str]:
        """The jobs that an engine with this much room gets, in the order of their groups."""
        await self.intake.refill(self.jobs.room(capacity))
        return self.admitted(capacity)

    def admitted(self, capacity: Capacity) -> list[str]:
        self.jobs._num_rows = SLOTS - capacity.free_slots
        groups, _ = self.jobs.next_turn(capacity)
        return [request.id.split("/")[0] for group in groups for request in group]

    async def claimed_ahead(self, num_ended: int = 9) -> None:
        self.intake.look_ahead(num_ended)
        if self.intake._claiming is not None:
            await self.intake._claiming


async def busy_with(queue: Backlog) -> Busy:
    """One that has filled all its slots from the queue."""
    busy = Busy(queue)
    assert len(await busy.refill(FULL)) == SLOTS
    return busy


async def test_a_backlog_is_claimed_ahead_and_fills_the_next_free_slots() -> None:
    queue = Backlog(100)
    busy = await busy_with(queue)
    await busy.claimed_ahead()
    assert len(busy.held) == SLOTS + 4
    assert await busy.refill(NO_SLOT) == []
    assert await busy.refill(Capacity(3, 3000)) == ["j64", "j65", "j66"]
    await busy.claimed_ahead()
    assert queue.counts == [64, 4, 3]


async def test_what_is_missing_is_claimed_at_once() -> None:
    queue = Backlog(100)
    busy = await busy_with(queue)
    await busy.claimed_ahead()
    assert sorted(await busy.refill(Capacity(10, 10_000))) == [f"j{i}" for i in range(64, 74)]
    assert queue.counts == [64, 4, 6]


@pytest.mark.parametrize(("num_jobs", "num_ended"), [(64, 9), (100, 0)])
async def test_without_a_backlog_or_an_end_nothing_is_claimed_ahead(
    num_jobs: int, num_ended: int
) -> None:
    busy = await busy_with(Backlog(num_jobs))
    await busy.claimed_ahead(num_ended)
    assert len(busy.held) == SLOTS


async def test_a_closed_intake_claims_nothing_more() -> None:
    queue = Backlog(100)
    busy = await busy_with(queue)
    busy.intake.close()
    await busy.claimed_ahead()
    assert await busy.refill(Capacity(3, 3000)) == []
    assert len(queue.jobs) == 100 - SLOTS


async def test_a_claim_that_has_not_answered_holds_up_no_turn() -> None:
    queue = Backlog(100)
    busy = await busy_with(queue)
    queue.answering.clear()
    busy.intake.look_ahead(9)
    assert await asyncio.wait_for(busy.refill(NO_SLOT), 5) == []
    assert await asyncio.wait_for(busy.refill(Capacity(1, 1000)), 5) == []
    queue.answering.set()
    assert busy.intake._claiming is not None
    await busy.intake._claiming
    assert await busy.refill(Capacity(1, 1000)) == ["j64"]


async def test_what_is_stopped_while_it_waits_gives_its_place_to_the_next() -> None:
    busy = await busy_with(Backlog(100))
    await busy.claimed_ahead()
    for job in busy.jobs.in_flight[SLOTS : SLOTS + 2]:
        assert busy.jobs.stop(job, JobState.LOST)
    assert await busy.refill(Capacity(1, 150)) == ["j66"]
    assert "j64" not in busy.held


async def test_an_idle_worker_begins_with_what_was_claimed_ahead() -> None:
    busy = await busy_with(Backlog(100))
    await busy.claimed_ahead()
    await busy.intake.next_window()
    assert busy.admitted(FULL) == ["j64", "j65", "j66", "j67"]


async def test_an_unheard_claim_is_made_again_before_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.intake.REDIS_RETRY_S", 0.0)
    queue = Backlog(100)
    busy = await busy_with(queue)
    queue.answers_lost = 2
    for _ in range(2):
        assert await busy.refill(Capacity(2, 2000)) == []
    assert sorted(await busy.refill(Capacity(9, 9000))) == ["j64", "j65"]
    assert queue.counts == [64, 2]


async def test_a_full_batch_makes_an_unheard_claim_again_though_no_row_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.intake.REDIS_RETRY_S", 0.0)
    queue = Backlog(100)
    busy = await busy_with(queue)
    queue.answers_lost = 1
    await busy.claimed_ahead()
    await busy.claimed_ahead(num_ended=0)
    assert busy.held[SLOTS:] == ["j64", "j65", "j66", "j67"]


async def test_what_was_claimed_unheard_is_given_back_at_the_end() -> None:
    queue = Backlog(100)
    busy = await busy_with(queue)
    assert await busy.intake.unheard() == []
    queue.answers_lost = 1
    await busy.refill(Capacity(2, 2000))
    busy.intake.close()
    await busy.intake.break_off()
    assert [job.id for job in await busy.intake.unheard()] == ["j64", "j65"]


async def test_a_claim_that_is_broken_off_leaves_nothing_behind() -> None:
    queue = Backlog(100)
    busy = await busy_with(queue)
    queue.answering.clear()
    busy.intake.look_ahead(9)
    await asyncio.sleep(0)
    await busy.intake.break_off()
    queue.answering.set()
    assert await busy.intake.unheard() == []
    assert len(busy.held) == SLOTS
    assert len(queue.jobs) == 100 - SLOTS


async def test_rows_end_after_a_claim_that_was_broken_off() -> None:
    """The turns of a worker that was told to stop ended with the claim that was cancelled."""
    queue = Backlog(100)
    busy = await busy_with(queue)
    queue.answering.clear()
    busy.intake.look_ahead(9)
    await asyncio.sleep(0)
    busy.intake.close()
    await busy.intake.break_off()
    busy.intake.look_ahead(9)
    assert len(busy.held) == SLOTS


async def test_a_job_that_cannot_become_a_row_is_refused_at_once() -> None:
    busy = Busy(Backlog(3, max_tokens=100_000))
    assert await busy.refill(Capacity(3, 3000)) == []
    assert [job.state for job in busy.jobs.in_flight] == [JobState.ENDED] * 3


class SlowTokenizer(ByteTokenizer):
    """Reads a prompt once it is let go on, in a thread that is not the loop's."""

    def __init__(self) -> None:
        self.go_on = threading.Semaphore(0)
        self.threads: set[int] = set()

    def encode(self, text: str) -> list[int]:
        self.threads.add(threading.get_ident())
        assert self.go_on.acquire(timeout=10)
        return super().encode(text)


async def test_what_is_claimed_is_held_while_it_is_tokenized_and_holds_up_no_turn() -> None:
    """All of a claim was tokenized before any of it was held: its leases ended unrenewed."""
    tokenizer = SlowTokenizer()
    busy = Busy(Backlog(3, prompt="x" * (INLINE_BYTES + 1)), tokenizer)
    assert await asyncio.wait_for(busy.refill(FULL), 5) == []
    assert [job.state for job in busy.jobs.in_flight] == [JobState.CLAIMED] * 3
    lost, cancelled, _ = busy.jobs.in_flight
    assert busy.jobs.stop(lost, JobState.LOST)
    assert busy.jobs.stop(cancelled, JobState.CANCELLING)
    for _ in range(3):
        tokenizer.go_on.release()
    await asyncio.wait_for(busy.intake.next_window(), 5)
    assert (await busy.refill(FULL)) == ["j2"]
    assert cancelled.state is JobState.ENDED
    assert busy.held == ["j1", "j2"]
    assert threading.get_ident() not in tokenizer.threads


async def test_the_first_jobs_of_a_big_claim_need_not_wait_for_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.intake.PORTION_BYTES", INLINE_BYTES)
    tokenizer = SlowTokenizer()
    busy = Busy(Backlog(3, prompt="x" * (INLINE_BYTES + 1)), tokenizer)
    tokenizer.go_on.release()
    await asyncio.wait_for(busy.intake.next_window(), 5)
    assert [job.state for job in busy.jobs.in_flight] == [
        JobState.WAITING,
        JobState.CLAIMED,
        JobState.CLAIMED,
    ]
    for _ in range(2):
        tokenizer.go_on.release()
    assert busy.intake._claiming is not None
    await asyncio.wait_for(busy.intake._claiming, 5)
    assert busy.jobs.num_waiting == 3


async def test_what_nobody_foresaw_in_a_claim_ends_the_worker() -> None:
    queue = Backlog(3)
    busy = Busy(queue)
    queue.jobs = None  # type: ignore[assignment]
    await busy.refill(FULL)
    with pytest.raises(TypeError):
        busy.intake.look_ahead(0)
