"""Records that are gone, deleted by hand or evicted: their jobs are struck off, the others go on."""

import pytest
from redis.asyncio import Redis

from millpond.messages import JobStatus
from millpond.queue.claims import Commit, Lease
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from tests.contract.jobs import (
    delta,
    due,
    failed,
    ids,
    lease_over,
    put,
    short_lease,
    success,
    take,
    take_one,
    with_options,
)


async def lose(redis: Redis, queue: JobQueue, *names: str) -> None:
    await redis.delete(*(queue.keys.job(name) for name in names))


async def test_a_claim_goes_on_behind_what_is_missing(
    queue: JobQueue, redis: Redis, results: Results
) -> None:
    await put(queue, "a", "b", "c")
    await put(queue, "d", priority="interactive")
    await lose(redis, queue, "a", "b", "d")
    claim = await queue.claim("w", 8, budget_tokens=1_000, capacity_tokens=1_000)
    assert (ids(claim.jobs), claim.missing, claim.left) == (["c"], 3, 0)
    state = await results.queue_state()
    assert (state.depth, state.running, state.missing) == (0, 1, 3)
    assert state.unfinished == {"default": 1}
    assert await queue.waiting() == 0, "an idle worker would claim again and again"
    await strike_off_accounts(redis, queue, 3)


async def test_what_is_left_of_it_goes(queue: JobQueue, redis: Redis) -> None:
    await put(queue, "a", deadline_s=60.0)
    await redis.set(queue.keys.kept("a", 1), b"tokens")
    await lose(redis, queue, "a")
    assert (await take(queue)) == []
    assert not await redis.exists(queue.keys.kept("a", 1))
    left = {key async for key in redis.scan_iter()}
    assert not [key for key in left if key.endswith(b":a")]
    assert await redis.zcard(queue.keys["deadlines"]) == 0
    await strike_off_accounts(redis, queue, 1)


async def test_a_missing_job_under_a_lease(queue: JobQueue, redis: Redis, results: Results) -> None:
    short = JobQueue(redis, "test", short_lease(queue.options))
    await put(short, "a", "b")
    jobs = await take(short)
    await lose(redis, short, "a")
    held = [(job.id, job.fence) for job in jobs]
    assert await short.renew(held) == [Lease.LOST, Lease.HELD]
    assert await short.emit([delta(jobs[0], "text")]) == [Commit.LOST]
    assert await short.complete([(jobs[0].fence, success("a"))]) == [Commit.LOST]
    assert await short.fail(jobs[0].fence, 1, failed("a")) is Commit.LOST
    assert await short.release([("a", jobs[0].fence)]) == 0
    assert await short.cancel("a") is None
    assert await short.complete([(jobs[1].fence, success("b"))]) == [Commit.STORED]
    await lease_over(redis, short)
    assert (await short.reap()).missing == 1
    assert (await results.queue_state()).running == 0
    await strike_off_accounts(redis, queue, 1)


@pytest.mark.parametrize("where", ["delayed", "suspects"])
async def test_a_missing_job_that_is_in_no_lane(
    queue: JobQueue, redis: Redis, results: Results, where: str
) -> None:
    quick = with_options(queue, redis, retry_delay_s=0.0, suspect_wait_s=0.0)
    await put(quick, "a", "b", priority="batch")
    jobs = await take(quick, 2)
    if where == "delayed":
        await quick.fail(jobs[0].fence, 1, failed(jobs[0].id))
        await quick.release([(jobs[1].id, jobs[1].fence)])
    else:
        await quick.suspect([(job.fence, failed(job.id)) for job in jobs])
    await lose(redis, quick, "a")
    await due(redis, quick)
    found = await take(quick)
    found += await take(quick)
    assert "b" in ids(found)
    await quick.complete([(job.fence, success(job.id)) for job in found])
    state = await results.queue_state()
    assert (state.depth, state.running, state.missing) == (0, 0, 1)
    assert state.unfinished == {}
    await strike_off_accounts(redis, queue, 1)


async def test_a_missing_record_can_be_submitted_again(
    queue: JobQueue, redis: Redis, results: Results
) -> None:
    await put(queue, "a")
    await lose(redis, queue, "a")
    assert await take(queue) == []
    await put(queue, "a")
    job = await take_one(queue)
    assert await queue.complete([(job.fence, success("a"))]) == [Commit.STORED]
    assert (await results.get("a")).status is JobStatus.SUCCEEDED
    await strike_off_accounts(redis, queue, 1)


async def strike_off_accounts(redis: Redis, queue: JobQueue, number: int) -> None:
    """The invariants know no missing jobs: what was accepted, ended or is there."""
    await redis.hincrby(queue.keys.counts, "accepted:normal", -number)
