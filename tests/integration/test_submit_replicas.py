"""A submit that waits for replicas: accepted when they have the job, refused when they do not get it."""

import os
import signal
from collections.abc import AsyncIterator

import pytest

from millpond.errors import QueueUnavailableError
from millpond.messages import JobRequest
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue, QueueOptions
from millpond.queue.submission import NewJob, Submission
from tests.integration.conftest import StartApi
from tests.integration.test_failover import Pair
from tests.integration.test_failover import pair as pair  # the fixture

OPTIONS = QueueOptions(submit_replicas=1, submit_replicas_timeout_s=0.2)
A = JobRequest(prompt="a")


@pytest.fixture
async def queue(pair: Pair) -> AsyncIterator[JobQueue]:
    redis = connect(pair.old.url)
    yield JobQueue(redis, "test", OPTIONS)
    await redis.aclose()


def signal_replica(pair: Pair, number: signal.Signals) -> None:
    assert pair.new.pid is not None
    os.kill(pair.new.pid, number)


async def test_what_was_accepted_is_on_the_replica(pair: Pair, queue: JobQueue) -> None:
    """One call loads the script, one has it, and one is several script calls."""
    await queue.submit(A, id="first")
    await queue.submit(A, id="second")
    answers = await queue.submit_many([NewJob(A, id=f"j{i}") for i in range(250)])
    assert all(isinstance(answer, Submission) for answer in answers)

    await pair.old.kill()

    redis = connect(pair.new.url)
    assert await JobQueue(redis, "test").depth() == 252
    await redis.aclose()


async def test_a_replica_that_does_not_get_it(pair: Pair, queue: JobQueue) -> None:
    """Also of a job that is known: on a connection that has written nothing, `WAIT` of Valkey does not
    wait for what others have written."""
    await queue.submit(A, id="before")
    signal_replica(pair, signal.SIGSTOP)
    try:
        for _ in range(2):
            with pytest.raises(QueueUnavailableError, match=r"0 of 1 replicas \(submit_replicas\)"):
                await queue.submit(A, id="late")
            fresh = connect(pair.old.url)
            with pytest.raises(QueueUnavailableError, match="0 of 1 replicas"):
                await JobQueue(fresh, "test", OPTIONS).submit(A, id="before")
            await fresh.aclose()
    finally:
        signal_replica(pair, signal.SIGCONT)

    assert not (await queue.submit(A, id="late")).created
    assert await queue.depth() == 2


async def test_the_api_says_try_later(pair: Pair, start_api: StartApi) -> None:
    async with start_api(pair.old.url, submit_replicas=1, submit_replicas_timeout_s=0.1) as api:
        key = {"Idempotency-Key": "k"}
        await api.submit()
        signal_replica(pair, signal.SIGSTOP)
        try:
            answer = await api.http.post("/v1/jobs", json={"prompt": "a"}, headers=key)
        finally:
            signal_replica(pair, signal.SIGCONT)
        assert (answer.status_code, answer.json()["code"]) == (503, "queue_unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        again = await api.http.post("/v1/jobs", json={"prompt": "a"}, headers=key)
        assert again.status_code == 202
        assert await api.queue.depth() == 2
