"""A server that has reached ``maxmemory``: new jobs and streamed text are refused, all else goes on."""

from collections.abc import AsyncIterator
from typing import Protocol

import pytest
from redis.asyncio import Redis

from millpond.access.api_keys import ApiKeys, Scope
from millpond.access.rate_limits import REQUESTS, RateLimiter
from millpond.errors import QueueUnavailableError
from millpond.messages import JobStatus
from millpond.queue.claims import Commit, Lease
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from millpond.queue.submission import NewJob
from tests.contract.conftest import BACKENDS, IN_PROCESS
from tests.contract.invariants import check_invariants
from tests.contract.jobs import (
    a_worker,
    delta,
    failed,
    put,
    request,
    success,
    take,
    until,
    with_options,
)

pytestmark = pytest.mark.parametrize(
    "redis", [b for b in BACKENDS if b not in IN_PROCESS], indirect=True
)


class Full(Protocol):
    async def __call__(self, *, on: bool) -> None: ...


@pytest.fixture
async def full(redis: Redis) -> AsyncIterator[Full]:
    """Makes the server full, and no longer so."""

    async def switch(*, on: bool) -> None:
        await redis.config_set("maxmemory", "1mb" if on else "0")

    yield switch
    await switch(on=False)


async def test_a_full_server_refuses_new_jobs_only(
    queue: JobQueue, redis: Redis, full: Full
) -> None:
    """What was accepted can still run and end: that is what frees the memory."""
    queue = with_options(queue, redis, retry_delay_s=0.0, max_attempts=2, max_deaths=2)
    await put(queue, "done", "failed", "released", "cancelled", "flagged")
    await put(queue, "queued", priority="batch")
    await full(on=True)
    with pytest.raises(QueueUnavailableError, match="maxmemory"):
        await put(queue, "new")
    with pytest.raises(QueueUnavailableError, match="maxmemory"):
        await queue.submit_many([NewJob(request(), id="new1"), NewJob(request(), id="new2")])
    await check_invariants(redis, queue.keys)
    assert await queue.cancel("cancelled") is JobStatus.CANCELLED
    held = {job.id: job for job in await take(queue, 4)}
    assert held.keys() == {"done", "failed", "released", "flagged"}
    pairs = [(job.id, job.fence) for job in held.values()]
    assert Lease.LOST not in await queue.renew(pairs)
    assert await queue.complete([(held["done"].fence, success("done"))]) == [Commit.STORED]
    assert await queue.fail(held["failed"].fence, 1, failed("failed")) is Commit.RETRY
    assert await queue.release([("released", held["released"].fence)]) == 1
    brief = with_options(queue, redis, lease_s=0.001)

    async def buried() -> int:
        await take(brief)
        await brief.reap()
        return int(await redis.zcard(queue.keys.dead))

    assert await until(buried)  # leases may end too, up to the last attempt
    await check_invariants(redis, queue.keys)
    await full(on=False)
    await put(queue, "new")
    await check_invariants(redis, queue.keys)


async def test_a_full_server_refuses_text_and_stores_the_end(
    queue: JobQueue, redis: Redis, results: Results, full: Full
) -> None:
    await put(queue, "a")
    [job] = await take(queue)
    await queue.emit([delta(job, "one ")])
    await full(on=True)
    with pytest.raises(QueueUnavailableError, match="maxmemory"):
        await queue.emit([delta(job, "two", 4)])
    assert await queue.complete([(job.fence, success("a", "one two"))]) == [Commit.STORED]
    events = [event async for event in results.subscribe("a")]
    assert [event.text for event in events if event.text] == ["one "]
    assert events[-1].result is not None
    assert events[-1].result.text == "one two"


async def test_a_full_server_answers_whoever_looks_or_ends(
    queue: JobQueue, redis: Redis, results: Results, full: Full
) -> None:
    keys, limiter = ApiKeys(redis, queue.keys), RateLimiter(redis, queue.keys)
    key, _ = await keys.create("default", {Scope.READ})
    await put(queue, "running", "queued")
    [job] = await take(queue, 1)
    await full(on=True)
    assert await queue.cancel("running") is JobStatus.RUNNING
    assert await queue.renew([("running", job.fence)]) == [Lease.CANCELLED]
    assert (await results.get("running")).cancelling
    assert (await results.get("queued")).position == 1
    for left in (9, 8):  # the first payment makes the bucket
        [budget] = await limiter.spend(key.id, {REQUESTS: 10}, {REQUESTS: 1})
        assert budget.left == left
    await queue.beat("w", a_worker())
    await queue.wake_another()
    assert [worker.id for worker in (await results.queue_state()).workers] == ["w"]
    with pytest.raises(QueueUnavailableError):
        await keys.create("default", {Scope.READ})
    assert await keys.revoke(key.id)
    # What an API key leaves is none of the queue's.
    await redis.delete(queue.keys["api_keys"], queue.keys.api_key(key.id))
