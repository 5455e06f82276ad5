"""Claiming: order, shares, budget, what is skipped."""

import asyncio
from collections import Counter

import pytest
from redis.asyncio import Redis

from millpond.messages import JobRequest, JobStatus
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from tests.contract.conftest import one_call_counts
from tests.contract.jobs import (
    failed,
    ids,
    put,
    request,
    server_ms,
    success,
    take,
    take_one,
    until,
    with_options,
)

INTERACTIVE, NORMAL, BATCH = 12, 3, 1  # turns of sixteen


async def test_jobs_come_in_order_of_arrival(queue: JobQueue) -> None:
    names = [f"j{i}" for i in range(20)]
    await put(queue, *names)
    first = await queue.claim("w", 7, budget_tokens=1_000, capacity_tokens=1_000)
    assert ids(first.jobs) == names[:7]
    assert first.left == 13
    assert ids(await take(queue)) == names[7:]
    assert await take(queue) == []


async def test_a_claim_carries_all_that_the_worker_needs(queue: JobQueue, redis: Redis) -> None:
    await put(queue, "a", "b", prompt="text")
    one, other = await take(queue)
    assert JobRequest.from_json(one.body) == request("text")
    assert (one.attempt, other.attempt) == (1, 1)
    assert other.fence > one.fence > 0
    assert 0 <= one.queue_wait_ms < 5_000
    assert abs(one.claimed_ms - await server_ms(redis)) < 5_000
    record = await redis.hgetall(queue.keys.job("a"))
    assert (record[b"worker"], record[b"fence"]) == (b"w", str(one.fence).encode())


async def test_exact_shares_over_sixteen_turns(queue: JobQueue) -> None:
    for priority in ("batch", "normal", "interactive"):
        await put(queue, *(f"{priority}-{i}" for i in range(40)), priority=priority)
    for _ in range(2):
        window = ids(await take(queue, 16))
        shares = Counter(id.partition("-")[0] for id in window)
        assert shares == {"interactive": INTERACTIVE, "normal": NORMAL, "batch": BATCH}
    for lane in ("interactive", "normal", "batch"):
        own = [id for id in window if id.startswith(lane)]
        assert own == sorted(own, key=lambda id: int(id.partition("-")[2]))


async def test_shares_go_on_over_small_claims(queue: JobQueue) -> None:
    """The turn is kept between calls, so a worker with one free slot starves nobody either."""
    for priority in ("batch", "normal", "interactive"):
        await put(queue, *(f"{priority}-{i}" for i in range(40)), priority=priority)
    taken = [(await take_one(queue)).id for _ in range(32)]
    shares = Counter(id.partition("-")[0] for id in taken)
    assert shares == {"interactive": 2 * INTERACTIVE, "normal": 2 * NORMAL, "batch": 2 * BATCH}


async def test_turns_of_an_empty_lane_go_to_the_highest(queue: JobQueue) -> None:
    for priority in ("batch", "normal"):
        await put(queue, *(f"{priority}-{i}" for i in range(40)), priority=priority)
    shares = Counter(id.partition("-")[0] for id in ids(await take(queue, 16)))
    assert shares == {"normal": INTERACTIVE + NORMAL, "batch": BATCH}


async def test_a_trickle_of_batch_jobs_under_constant_pressure(queue: JobQueue) -> None:
    await put(queue, "batch-0", priority="batch")
    for round_ in range(16):
        await put(queue, f"interactive-{round_}", f"interactive-{round_}b", priority="interactive")
        if (await take_one(queue)).id == "batch-0":
            return
    pytest.fail("the batch job starved")


async def test_token_budget(queue: JobQueue) -> None:
    for id, tokens in (("a", 40), ("b", 50), ("c", 20), ("d", 1)):
        await queue.submit(request(), id=id, tokens=tokens)
    assert ids(await take(queue, budget=100)) == ["a", "b"]  # d would fit, but c is before it
    assert await take(queue, budget=19) == []
    assert ids(await take(queue, budget=20)) == ["c"]
    assert ids(await take(queue, budget=1)) == ["d"]


async def test_a_job_beyond_all_capacity_is_given_to_an_empty_worker(queue: JobQueue) -> None:
    await queue.submit(request(), id="huge", tokens=5_000)
    assert await take(queue, budget=99, capacity=100) == []
    assert ids(await take(queue, budget=100, capacity=100)) == ["huge"]


async def test_cancelled_jobs_are_skipped(queue: JobQueue) -> None:
    await put(queue, *(f"j{i}" for i in range(6)))
    for i in (0, 1, 3, 5):
        await queue.cancel(f"j{i}")
    assert ids(await take(queue, 2)) == ["j2", "j4"]
    claim = await queue.claim("w", 2, budget_tokens=100, capacity_tokens=100)
    assert (claim.jobs, claim.left) == ([], 0)


async def test_submit_and_cancel_leave_nothing(queue: JobQueue, redis: Redis) -> None:
    """Without any worker: what is cancelled is out of its lane at once."""
    for i in range(50):
        await put(queue, f"j{i}", priority="batch" if i % 2 else "normal")
        await queue.cancel(f"j{i}")
    assert await queue.waiting() == 0
    assert not await redis.keys("*lane:*")
    assert not await redis.keys("*active:*")


async def test_past_the_deadline_at_claim(queue: JobQueue, redis: Redis, results: Results) -> None:
    await put(queue, "a", deadline_s=0.02)
    await put(queue, "b", deadline_s=60.0)
    deadline = (await results.get("a")).created_ms + 20

    async def passed() -> bool:
        return await server_ms(redis) >= deadline

    await until(passed)
    assert ids(await take(queue)) == ["b"]
    view = await results.get("a")
    assert view.status is JobStatus.EXPIRED
    assert view.result is not None
    assert view.result.error is not None
    assert view.result.error.code == "deadline_exceeded"


@one_call_counts
async def test_many_expired_jobs_are_ended_over_several_calls(
    queue: JobQueue, redis: Redis
) -> None:
    """A claim's work is bounded, however many jobs have expired meanwhile."""
    await put(queue, *(f"j{i}" for i in range(450)), deadline_s=0.3)
    await put(queue, "alive")

    async def all_passed() -> bool:
        last = await redis.zrange(queue.keys["deadlines"], -1, -1, withscores=True)
        return not last or await server_ms(redis) >= last[0][1]

    await until(all_passed)
    assert await take(queue) == []
    assert 0 < await queue.depth() < 451

    async def found() -> list[str]:
        return ids(await take(queue))

    assert await until(found) == ["alive"]


async def test_a_lost_body_is_a_stored_failure(queue: JobQueue, redis: Redis) -> None:
    await put(queue, "a", "b")
    await redis.delete(queue.keys.body("a"))
    assert ids(await take(queue)) == ["b"]
    assert (await redis.hget(queue.keys.job("a"), "status")) == b"failed"
    assert await redis.zrange(queue.keys.dead, 0, -1) == [b"a"]


async def test_fences_only_grow(queue: JobQueue) -> None:
    seen = [0]
    await put(queue, *(f"j{i}" for i in range(10)))
    for _ in range(5):
        jobs = await take(queue, 4)
        fences = [job.fence for job in jobs]
        assert fences == sorted(fences)
        assert fences[0] > seen[-1]
        seen += fences
        await queue.release([(job.id, job.fence) for job in jobs])


async def test_claiming_none_and_more_than_a_call_allows(queue: JobQueue, redis: Redis) -> None:
    deep = with_options(queue, redis, max_depth=5_000)
    assert await take(deep, 0) == []
    await put(deep, *(f"j{i}" for i in range(1_010)))
    assert len(await take(deep, 100_000)) == 1_000
    assert len(await take(deep, 100_000)) == 10


async def test_several_claimers_never_share_a_job(queue: JobQueue) -> None:
    names = [f"j{i}" for i in range(400)]
    await put(queue, *names)
    owners: dict[str, str] = {}

    async def work(worker: str) -> None:
        while jobs := await take(queue, 7, worker=worker):
            for job in jobs:
                assert job.id not in owners
                owners[job.id] = worker
            await queue.complete([(job.fence, success(job.id)) for job in jobs])

    await asyncio.gather(*(work(f"w{i}") for i in range(8)))
    assert owners.keys() == set(names)
    assert len(set(owners.values())) > 1


async def test_wait_for_work_wakes_at_once(queue: JobQueue) -> None:
    waiter = asyncio.create_task(queue.wait_for_work(5.0))
    await put(queue, "a")
    async with asyncio.timeout(2):
        assert await waiter is True


async def test_wait_for_work_gives_up(queue: JobQueue) -> None:
    assert await queue.wait_for_work(0.02) is False
    assert await queue.wait_for_work(0.0) is False


async def test_a_claim_that_leaves_jobs_wakes_the_next_worker(queue: JobQueue) -> None:
    await put(queue, "a", "b")
    assert await queue.wait_for_work(1.0) is True
    await take_one(queue)
    assert await queue.wait_for_work(1.0) is True
    await take_one(queue)
    assert await queue.wait_for_work(0.02) is False


async def test_a_waiting_retry_keeps_nobody_awake(queue: JobQueue, redis: Redis) -> None:
    slow = with_options(queue, redis, retry_delay_s=60.0)
    await put(slow, "a")
    assert await slow.wait_for_work(1.0) is True
    job = await take_one(slow)
    await slow.fail(job.fence, job.attempt, failed("a"))
    assert await take(slow) == []
    assert await slow.wait_for_work(0.02) is False


async def test_a_claim_takes_so_many_bytes_and_leaves_the_rest(queue: JobQueue) -> None:
    """Long prompts: what one claim gives can be tokenized long before its leases end."""
    await put(queue, "a", "b", "c", prompt="x" * 400_000)
    await put(queue, "d", prompt="é" * 1_000_000)
    first = await queue.claim("w", 64, budget_tokens=10_000, capacity_tokens=10_000)
    assert (ids(first.jobs), first.left) == (["a", "b"], 2)
    assert ids(await take(queue)) == ["c"]
    assert ids(await take(queue)) == ["d"], "one body may be longer than that"
