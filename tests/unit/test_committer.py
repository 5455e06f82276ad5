"""What the Committer sends again, and what does not wait for what. A queue that refuses stands in."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from millpond.errors import QueueUnavailableError
from millpond.messages import FinishReason, JobEvent, JobRequest, JobResult, JobStatus
from millpond.models.prompts import PreparedPrompt
from millpond.queue.claims import ClaimedJob, Commit, KeptText, KeptTokens
from millpond.queue.job_queue import JobQueue
from worker.engines.base import Delta
from worker.jobs import committer
from worker.jobs.committer import Committer, Ending
from worker.jobs.in_flight import InFlightJob
from worker.jobs.kept import pack, unpack


class Refusing:
    """Records what it is sent and answers nothing while ``refuses`` holds."""

    def __init__(self) -> None:
        self.refuses = False
        self.deltas: list[tuple[int, str]] = []
        self.kept: list[tuple[int, tuple[int, ...]]] = []
        self.stored: list[str] = []

    async def emit(
        self, deltas: Sequence[tuple[int, JobEvent]], kept: Sequence[tuple[int, KeptTokens]] = ()
    ) -> list[Commit]:
        self.kept += [(k.offset, unpack(k.tokens, with_logprobs=False).token_ids) for _, k in kept]
        self.deltas += [(event.offset, event.text) for _, event in deltas]
        if self.refuses:
            raise QueueUnavailableError("refused")
        return [Commit.STORED] * len(deltas)

    async def complete(self, results: Sequence[tuple[int, JobResult]]) -> list[Commit]:
        self.stored += [result.text for _, result in results]
        return [Commit.STORED] * len(results)


def in_flight(*kept: KeptText, stream: bool = True) -> InFlightJob:
    claimed = ClaimedJob("a", 1, 1, 0, 0, b"", kept=kept)
    prompt = PreparedPrompt(token_ids=[1], max_tokens=10, truncated=False)
    job = InFlightJob(claimed, window_jobs=1)
    job.prepared(JobRequest(prompt="hi", stream=stream), prompt)
    return job


def ending(job: InFlightJob, text: str) -> Ending:
    result = JobResult(
        id=job.id, status=JobStatus.SUCCEEDED, finish_reason=FinishReason.STOP, text=text
    )
    return Ending(job.claimed, result)


@pytest.fixture
def queue() -> Refusing:
    return Refusing()


@pytest.fixture
async def running(queue: Refusing, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(committer, "RETRY_DELAY_S", 0.001)
    made = Committer(
        cast(JobQueue, queue), lambda *_: None, delta_interval_s=0.0, checkpoint_tokens=3
    )
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def sent(queue: Refusing, number: int) -> None:
    async with asyncio.timeout(5):
        while len(queue.deltas) < number:
            await asyncio.sleep(0)


async def test_what_was_not_answered_is_sent_again_as_it_was(
    queue: Refusing, running: Committer
) -> None:
    """Else the server, which may have written it, could not know it again."""
    job = in_flight()
    queue.refuses = True
    running.add(job.rows[0], Delta("a", "one ", ()))
    await sent(queue, 1)
    running.add(job.rows[0], Delta("a", "two", ()))
    await sent(queue, 3)
    queue.refuses = False
    running.add_ending(ending(job, "one two"))
    async with asyncio.timeout(5):
        await running.settled()
    assert set(queue.deltas[:-1]) == {(0, "one ")}
    assert queue.deltas[-1] == (4, "two")
    assert queue.stored == ["one two"]


async def test_a_result_does_not_wait_for_refused_text(queue: Refusing, running: Committer) -> None:
    ended, going_on = in_flight(), in_flight()
    queue.refuses = True
    running.add(ended.rows[0], Delta("a", "text", ()))
    running.add_ending(ending(ended, "text"))
    async with asyncio.timeout(5):
        await running.settled()
    assert queue.stored == ["text"]
    number = len(queue.deltas)
    running.add(going_on.rows[0], Delta("a", "later", ()))
    await sent(queue, number + 2)
    assert set(queue.deltas[number:]) == {(0, "later")}, (
        "the ended job's text is left to its result"
    )


async def test_tokens_go_with_the_text_that_they_make(queue: Refusing, running: Committer) -> None:
    job = in_flight()
    running.add(job.rows[0], Delta("a", "", (5,)))
    running.add(job.rows[0], Delta("a", "one", (6,)))
    await sent(queue, 1)
    assert (queue.kept, queue.deltas) == ([(0, (5, 6))], [(0, "one")])
    running.add(job.rows[0], Delta("a", " two", (7,)))
    await sent(queue, 2)
    assert queue.kept[1:] == [(8, (7,))], "its offset is in bytes"


async def test_tokens_without_a_stream_are_kept_every_so_many(
    queue: Refusing, running: Committer
) -> None:
    [row] = in_flight(stream=False).rows
    for token_id in range(5):
        running.add(row, Delta("a", "x", (token_id,)))
    async with asyncio.timeout(5):
        while not queue.kept:
            await asyncio.sleep(0)
    assert queue.kept == [(0, (0, 1, 2, 3, 4))]
    running.add(row, Delta("a", "x", (5,)))
    await running.flush([row])
    assert (queue.kept[1:], queue.deltas) == ([(20, (5,))], [])


async def test_nothing_is_written_twice_of_a_row_that_goes_on(
    queue: Refusing, running: Committer
) -> None:
    """The engine says again what was kept. Less of the text had been streamed."""
    [row] = in_flight(KeptText(4, 0, pack([1, 2], None))).rows
    assert row.num_tokens == 2
    running.add(row, Delta("a", "one two", (1, 2, 3)))
    await sent(queue, 1)
    assert (queue.kept, queue.deltas) == ([(8, (3,))], [(4, "two")])
