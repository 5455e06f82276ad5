"""Row 14: jobs that are cancelled, or whose deadline passes, at any moment of their lives."""

import asyncio
import random
from pathlib import Path

from millpond.messages import JobRequest, JobStatus
from millpond.messages.stored_results import unpack
from millpond.queue.results import Results
from millpond.queue.submission import NewJob, Submission
from tests.chaos.fleet import Fleet, Ledger, ledger_on, worker_settings
from tests.chaos.test_workers import server as server  # the fixture
from tests.chaos.test_workers import size
from tests.contract.jobs import server_ms, until

WAVE = 100
MOST_CALLS = 30  # at once, so that a busy machine has connections for them
SLACK_S = 1.0  # steps, a write, and a busy machine


async def end_early(ledger: Ledger, number: int, chance: random.Random) -> dict[str, int]:
    """Submit ``number`` jobs in waves, cancel each at a random moment: when, by the server's clock."""
    cancelled_ms: dict[str, int] = {}
    calls = asyncio.Semaphore(MOST_CALLS)

    async def cancel_later(id: str) -> None:
        await asyncio.sleep(chance.uniform(0.0, 1.5))
        async with calls:
            cancelled_ms[id] = await server_ms(ledger.redis)
            assert await ledger.queue.cancel(id) is not None

    async with asyncio.TaskGroup() as tasks:
        for start in range(0, number, WAVE):
            wave = [request(start + i) for i in range(WAVE)]
            answers = await ledger.queue.submit_many([NewJob(r, tokens=100) for r in wave])
            for one, answer in zip(wave, answers, strict=True):
                assert isinstance(answer, Submission)
                ledger.requests[answer.id] = one
                tasks.create_task(cancel_later(answer.id))
            await ledger.submit(
                [request(i, deadline_s=chance.uniform(0.01, 1.5)) for i in range(WAVE)]
            )
            await asyncio.sleep(0.3)
    return cancelled_ms


def request(number: int, deadline_s: float | None = None) -> JobRequest:
    return JobRequest(
        prompt=f"job {number}",
        max_tokens=20 + number % 200,
        ignore_eos=True,
        stream=number % 4 == 0,
        deadline_s=deadline_s,
    )


async def rows(results: Results) -> int:
    return sum(int(w.state.rows) for w in (await results.queue_state()).workers)


async def test_cancels_and_deadlines(server, tmp_path: Path) -> None:
    settings = worker_settings(server)
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, size(3, 2), tmp_path / "workers.log"),
    ):
        cancelled_ms = await end_early(ledger, size(5_000, 200), random.Random(14))
        await ledger.all_ended(60.0)
        statuses = await ledger.check(least_succeeded=0.0)

        late_s: list[float] = []
        for id, asked in ledger.requests.items():
            record = await ledger.redis.hgetall(ledger.queue.keys.job(id))
            stored = await ledger.redis.get(ledger.queue.keys.result(id))
            result = unpack(stored, int(record[b"finished"]))
            if asked.deadline_s is not None:
                assert result.status in (JobStatus.SUCCEEDED, JobStatus.EXPIRED)
                due_ms = int(record[b"created"]) + round(asked.deadline_s * 1000)
            else:
                assert result.status in (JobStatus.SUCCEEDED, JobStatus.CANCELLED)
                due_ms = cancelled_ms[id]
            # Only a worker writes a receipt: the job was in a slot when it was ended.
            if result.status is not JobStatus.SUCCEEDED and result.receipt is not None:
                late_s.append((result.finished_ms - due_ms) / 1000)
        assert statuses[JobStatus.EXPIRED] > 0
        assert statuses[JobStatus.CANCELLED] > 0
        assert late_s, "nothing was ended while it ran"
        assert max(late_s) < settings.heartbeat_s + SLACK_S
        await until(lambda: no_rows(ledger.results))
        late_s.sort()
        print(
            f"{dict(statuses)}; {len(late_s)} ended while they ran, "
            f"p50 {late_s[len(late_s) // 2]:.3f} s, "
            f"p99 {late_s[int(len(late_s) * 0.99)]:.3f} s, most {late_s[-1]:.3f} s"
        )


async def no_rows(results: Results) -> bool:
    return await rows(results) == 0
