"""Jobs whose worker died with them: the cause is cornered, the innocents pay nothing."""

import pytest
from redis.asyncio import Redis

from millpond.messages import JobStatus
from millpond.queue import JobQueue
from millpond.results import Results
from tests.contract.invariants import check_invariants
from tests.contract.jobs import (
    PLENTY,
    SHORT_LEASE_S,
    failed,
    ids,
    lease_over,
    put,
    success,
    take,
    with_options,
)


@pytest.fixture
def short(queue: JobQueue, redis: Redis) -> JobQueue:
    return with_options(queue, redis, lease_s=SHORT_LEASE_S, retry_delay_s=0.0)


async def test_a_poison_job_is_cornered_by_halving(
    short: JobQueue, redis: Redis, results: Results
) -> None:
    """Each worker that runs the poison dies with all it holds: 32, 16, 8, 4, 2, then it alone, six times."""
    names = [f"j{i}" for i in range(32)]
    await put(short, *names)
    deaths = []
    for round_ in range(100):
        jobs = await take(short, 32, worker=f"w{round_}")
        if not jobs:
            break
        if "j13" in ids(jobs):
            deaths.append(len(jobs))
            await lease_over(redis, short)
        else:
            assert {job.attempt for job in jobs} == {1}
            await short.complete([(job.fence, success(job.id)) for job in jobs])
        await check_invariants(redis, short.keys)
    assert deaths == [32, 16, 8, 4, 2, 1, 1, 1, 1, 1, 1]
    for name in names:
        view = await results.get(name)
        assert view.status is (JobStatus.FAILED if name == "j13" else JobStatus.SUCCEEDED)
    assert await redis.lrange(short.keys.dead, 0, -1) == [b"j13"]


async def test_an_engine_that_broke_gives_its_rows_back_by_halves(
    queue: JobQueue, redis: Redis, results: Results
) -> None:
    await put(queue, "a", "b", "c", "d")
    for expected in (["a", "b", "c", "d"], ["a", "b"], ["c", "d"]):
        jobs = await take(queue)
        assert ids(jobs) == expected
        assert await queue.suspect([(job.fence, failed(job.id)) for job in jobs]) == len(expected)
        assert await queue.suspect([(job.fence, failed(job.id)) for job in jobs]) == 0
        await check_invariants(redis, queue.keys)
    for _ in range(4):
        [job] = await take(queue)
        assert job.attempt == 1
        await queue.complete([(job.fence, success(job.id))])
    assert (await results.queue_state()).done[JobStatus.SUCCEEDED] == 4


async def test_alone_it_spends_its_attempts(queue: JobQueue, results: Results) -> None:
    await put(queue, "a")
    for attempt in (1, 2, 3):
        [job] = await take(queue)
        assert job.attempt == attempt
        assert await queue.suspect([(job.fence, failed("a", "it broke"))]) == 1
    view = await results.get("a")
    assert view.status is JobStatus.FAILED
    assert view.result is not None
    assert view.result.error is not None
    assert view.result.error.message == "it broke"


async def test_suspects_run_alone_and_first(queue: JobQueue) -> None:
    await put(queue, "a", "b", "c")
    jobs = await take(queue, 2)
    await queue.suspect([(job.fence, failed(job.id)) for job in jobs])
    busy = await queue.claim("busy", 8, budget_tokens=PLENTY - 1, capacity_tokens=PLENTY)
    assert (ids(busy.jobs), busy.alone) == ([], False)
    assert busy.left == 3
    for name in ("a", "b"):
        claim = await queue.claim("idle", 8, budget_tokens=PLENTY, capacity_tokens=PLENTY)
        assert (ids(claim.jobs), claim.alone) == ([name], True)
    claim = await queue.claim("busy", 8, budget_tokens=PLENTY - 1, capacity_tokens=PLENTY)
    assert (ids(claim.jobs), claim.alone) == (["c"], False)


async def test_a_group_that_does_not_fit_is_taken_in_parts(queue: JobQueue) -> None:
    await put(queue, "a", "b", "c", "d")
    jobs = await take(queue)
    await queue.suspect([(job.fence, failed(job.id)) for job in jobs])
    assert ids(await take(queue, 1)) == ["a"]
    assert ids(await take(queue, budget=10, capacity=10)) == ["b"]
    assert ids(await take(queue)) == ["c", "d"]


async def test_suspects_that_ended_meanwhile_are_skipped(queue: JobQueue, redis: Redis) -> None:
    await put(queue, "a", "b", "c")
    jobs = await take(queue, 2)
    await queue.suspect([(job.fence, failed(job.id)) for job in jobs])
    await queue.cancel("a")
    await queue.cancel("b")
    claim = await queue.claim("idle", 8, budget_tokens=PLENTY, capacity_tokens=PLENTY)
    assert (ids(claim.jobs), claim.alone) == (["c"], False)
    assert await redis.llen(queue.keys["suspects"]) == 0


async def test_what_a_dead_worker_claimed_last_is_settled_with_the_rest(
    queue: JobQueue, short: JobQueue, redis: Redis
) -> None:
    """A job claimed after the last renewal has a later lease; it must not be blamed alone."""
    await put(queue, "a", "b")
    await take(short, 1, worker="dead")
    await take(queue, 1, worker="dead")
    await put(queue, "c")
    await take(queue, 1, worker="alive")
    first_ends = (await redis.zrange(queue.keys["leases"], 0, 0, withscores=True))[0][1]
    while True:
        seconds, micros = await redis.time()
        if int(seconds) * 1000 + int(micros) // 1000 > first_ends:
            break
    assert (await queue.reap())[0] == 2
    assert await redis.lrange(queue.keys["suspects"], 0, -1) == [b"a", b"b"]
    assert await redis.zrange(queue.keys["leases"], 0, -1) == [b"c"]
