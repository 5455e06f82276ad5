"""What a busy worker claims ahead of its free slots: under a backlog only, and in order."""

import asyncio

import pytest

from millpond.claims import Claim, ClaimedJob
from millpond.errors import QueueUnavailableError
from millpond.messages import JobRequest, JobStatus
from millpond.presets import PRESETS
from millpond.prompts import PreparedPrompt
from millpond.tokenization import ByteTokenizer
from worker.engines.base import Capacity
from worker.held import HeldJob
from worker.intake import Groups, Intake
from worker.window import WindowPolicy

SLOTS = 64
FULL = Capacity(free_slots=SLOTS, free_tokens=SLOTS * 1000)
NO_SLOT = Capacity(free_slots=0, free_tokens=0)
PROMPT = "ten bytes."


class Backlog:
    """A queue of so many jobs, of which `Intake` sees what it claims."""

    def __init__(self, num_jobs: int, max_tokens: int = 90) -> None:
        body = JobRequest(prompt=PROMPT, raw=True, max_tokens=max_tokens).to_json()
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


def intake_of(queue: Backlog, held: list[HeldJob]) -> Intake:
    return Intake(
        queue,  # type: ignore[arg-type]
        ByteTokenizer(),
        PRESETS["simulated"],
        worker_id="w",
        policy=WindowPolicy.hybrid(1, SLOTS, 0.1),
        group_padded_tokens=4096,
        full=FULL,
        hold=held.extend,
        refuse=lambda job, result: None,
    )


async def busy_intake(queue: Backlog, held: list[HeldJob]) -> Intake:
    """One that has filled all its slots from the queue."""
    intake = intake_of(queue, held)
    intake._work.set()
    window = await intake.refill(FULL)
    assert window is not None
    assert len(ids(window)) == SLOTS
    return intake


def ids(groups: Groups) -> list[str]:
    return [job.id for group in groups for job in group]


async def claimed_ahead(intake: Intake, num_ended: int = 9) -> None:
    intake.look_ahead(num_ended)
    if intake._claiming is not None:
        await intake._claiming


async def test_a_backlog_is_claimed_ahead_and_fills_the_next_free_slots() -> None:
    queue = Backlog(100)
    held: list[HeldJob] = []
    intake = await busy_intake(queue, held)
    await claimed_ahead(intake)
    assert len(held) == SLOTS + 4
    assert ids(await intake.refill(NO_SLOT)) == []
    assert ids(await intake.refill(Capacity(3, 3000))) == ["j64", "j65", "j66"]
    await claimed_ahead(intake)
    assert queue.counts == [64, 4, 3]


async def test_what_is_missing_is_claimed_at_once() -> None:
    queue = Backlog(100)
    intake = await busy_intake(queue, [])
    await claimed_ahead(intake)
    assert sorted(ids(await intake.refill(Capacity(10, 10_000)))) == [
        f"j{i}" for i in range(64, 74)
    ]
    assert queue.counts == [64, 4, 6]


@pytest.mark.parametrize(("num_jobs", "num_ended"), [(64, 9), (100, 0)])
async def test_without_a_backlog_or_an_end_nothing_is_claimed_ahead(
    num_jobs: int, num_ended: int
) -> None:
    queue = Backlog(num_jobs)
    held: list[HeldJob] = []
    intake = await busy_intake(queue, held)
    await claimed_ahead(intake, num_ended)
    assert len(held) == SLOTS


async def test_a_closed_intake_claims_nothing_ahead_and_gives_back_what_it_has() -> None:
    queue = Backlog(100)
    held: list[HeldJob] = []
    intake = await busy_intake(queue, held)
    queue.answering.clear()
    intake.look_ahead(9)
    intake.close()
    queue.answering.set()
    assert [job.id for job in await intake.put_down()] == ["j64", "j65", "j66", "j67"]
    await claimed_ahead(intake)
    assert len(held) == SLOTS + 4


async def test_a_claim_that_has_not_answered_does_not_hold_up_a_full_batch() -> None:
    queue = Backlog(100)
    intake = await busy_intake(queue, [])
    queue.answering.clear()
    intake.look_ahead(9)
    assert ids(await asyncio.wait_for(intake.refill(NO_SLOT), 5)) == []
    queue.answering.set()
    assert ids(await intake.refill(Capacity(1, 1000))) == ["j64"]


async def test_what_ends_while_it_waits_comes_out_first() -> None:
    held: list[HeldJob] = []
    intake = await busy_intake(Backlog(100), held)
    await claimed_ahead(intake)
    held[-1].end_as = JobStatus.CANCELLED
    held[-2].lost = True
    assert sorted(ids(await intake.refill(NO_SLOT))) == ["j66", "j67"]
    assert ids(await intake.refill(Capacity(2, 150))) == ["j64"]
    assert ids(await intake.refill(Capacity(2, 150))) == ["j65"]


async def test_an_idle_worker_begins_with_what_was_claimed_ahead() -> None:
    intake = await busy_intake(Backlog(100), [])
    await claimed_ahead(intake)
    assert ids(await intake.next_window()) == ["j64", "j65", "j66", "j67"]


async def test_an_unheard_claim_is_made_again_before_any_other() -> None:
    queue = Backlog(100)
    intake = await busy_intake(queue, [])
    queue.answers_lost = 2
    for _ in range(2):
        assert ids(await intake.refill(Capacity(2, 2000))) == []
        intake._work.set()
    assert sorted(ids(await intake.refill(Capacity(9, 9000)))) == ["j64", "j65"]
    assert queue.counts == [64, 2]


async def test_a_full_batch_makes_an_unheard_claim_again_though_no_row_ended() -> None:
    queue = Backlog(100)
    held: list[HeldJob] = []
    intake = await busy_intake(queue, held)
    queue.answers_lost = 1
    await claimed_ahead(intake)
    intake._work.set()
    await claimed_ahead(intake, num_ended=0)
    assert [job.id for job in held[SLOTS:]] == ["j64", "j65", "j66", "j67"]


async def test_what_was_claimed_unheard_is_given_back_at_the_end() -> None:
    queue = Backlog(100)
    intake = await busy_intake(queue, [])
    assert await intake.unheard() == []
    queue.answers_lost = 1
    await intake.refill(Capacity(2, 2000))
    intake.close()
    assert [job.id for job in await intake.unheard()] == ["j64", "j65"]


async def test_a_claim_that_is_broken_off_leaves_nothing_behind() -> None:
    queue = Backlog(100)
    held: list[HeldJob] = []
    intake = await busy_intake(queue, held)
    queue.answering.clear()
    intake.look_ahead(9)
    await asyncio.sleep(0)
    await intake.break_off()
    queue.answering.set()
    assert await intake.unheard() == []
    assert len(held) == SLOTS
    assert len(queue.jobs) == 100 - SLOTS


async def test_a_job_that_can_never_fit_goes_to_an_idle_engine_all_the_same() -> None:
    held: list[HeldJob] = []
    intake = await busy_intake(Backlog(100), held)
    await claimed_ahead(intake)
    held[SLOTS].prompt = PreparedPrompt([1], FULL.free_tokens, truncated=False)
    assert ids(await intake.refill(Capacity(SLOTS - 1, FULL.free_tokens - 1))) == []
    assert ids(await intake.next_window()) == ["j64"]


async def test_a_job_that_cannot_become_a_row_is_refused_at_once() -> None:
    refused: list[str] = []
    queue = Backlog(100, max_tokens=100_000)
    intake = intake_of(queue, [])
    intake._refuse = lambda job, result: refused.append(job.id)
    intake._work.set()
    assert ids(await intake.refill(Capacity(3, 3000))) == []
    assert refused == ["j0", "j1", "j2"]
