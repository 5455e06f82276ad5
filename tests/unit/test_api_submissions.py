"""Jobs that arrive together share a round trip; each still gets its own answer."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import pytest

from api.requests.submissions import MAX_BATCH_JOBS, SubmitBatcher
from millpond.errors import QueueFullError, QueueUnavailableError
from millpond.messages import JobRequest, JobStatus
from millpond.queue.job_queue import JobQueue
from millpond.queue.submission import NewJob, Submission


class SlowQueue:
    """Answers a batch when it is let; full for jobs called "full", away for a batch with "away"."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.let = asyncio.Event()

    async def submit_many(self, jobs: Sequence[NewJob]) -> list[Any]:
        ids = [str(job.id) for job in jobs]
        self.batches.append(ids)
        await self.let.wait()
        if "away" in ids:
            raise QueueUnavailableError("away")
        return [
            QueueFullError(1, 1) if id == "full" else Submission(id, JobStatus.QUEUED, True)
            for id in ids
        ]


@pytest.fixture
def queue() -> SlowQueue:
    return SlowQueue()


def submit(batcher: SubmitBatcher, id: str) -> "asyncio.Task[Submission]":
    return asyncio.ensure_future(batcher(NewJob(JobRequest(prompt="a"), id)))


async def test_a_lone_job_goes_at_once_and_the_rest_together(queue: SlowQueue) -> None:
    batcher = SubmitBatcher(cast(JobQueue, queue))
    first = submit(batcher, "first")
    while not queue.batches:
        await asyncio.sleep(0)
    others = [submit(batcher, id) for id in ("b", "full", "c")]
    queue.let.set()

    answers = await asyncio.gather(first, *others, return_exceptions=True)

    assert queue.batches == [["first"], ["b", "full", "c"]]
    assert [getattr(answer, "id", None) for answer in answers] == ["first", "b", None, "c"]
    assert isinstance(answers[2], QueueFullError)


async def test_an_outage_reaches_everyone_of_its_batch_and_no_other(queue: SlowQueue) -> None:
    batcher = SubmitBatcher(cast(JobQueue, queue))
    queue.let.set()

    answers = await asyncio.gather(
        submit(batcher, "a"), submit(batcher, "away"), return_exceptions=True
    )

    assert all(isinstance(answer, QueueUnavailableError) for answer in answers)
    assert (await submit(batcher, "later")).id == "later"


async def test_a_request_that_is_given_up_harms_no_other(queue: SlowQueue) -> None:
    batcher = SubmitBatcher(cast(JobQueue, queue))
    gone, kept = submit(batcher, "gone"), submit(batcher, "kept")
    while not queue.batches:
        await asyncio.sleep(0)
    gone.cancel()
    queue.let.set()

    assert (await kept).id == "kept"


async def test_no_batch_is_too_large(queue: SlowQueue) -> None:
    batcher = SubmitBatcher(cast(JobQueue, queue))
    queue.let.set()
    tasks = [submit(batcher, str(i)) for i in range(MAX_BATCH_JOBS + 1)]

    await asyncio.gather(*tasks)

    assert [len(batch) for batch in queue.batches] == [MAX_BATCH_JOBS, 1]
