"""Workers of several sizes on one queue: a job goes to one that it fits, if such a one lives."""

import pytest
from redis.asyncio import Redis

from millpond.messages.worker_state import WORKER_ALIVE_MS, WorkerPhase
from millpond.queue.claims import Claim
from millpond.queue.job_queue import JobQueue
from tests.contract.jobs import a_worker, ids, put, request, server_ms, success

SMALL, LARGE = 50, 500
BIG_WORKER = a_worker(slots=8, capacity_tokens=LARGE, context_tokens=LARGE)


async def claim(queue: JobQueue, worker: str, tokens: int, *, slots: int = 2) -> Claim:
    return await queue.claim(
        worker, 8, budget_tokens=tokens, capacity_tokens=tokens, slots=slots, row_tokens=tokens
    )


async def submit_long(queue: JobQueue, id: str, **fields: object) -> None:
    await queue.submit(request(**fields), id=id, tokens=200)


async def test_a_small_worker_leaves_a_long_job_to_a_larger_one(
    queue: JobQueue, redis: Redis
) -> None:
    await queue.beat("large", BIG_WORKER)
    await submit_long(queue, "long")
    await put(queue, "short")
    given = await claim(queue, "small", SMALL)
    assert (ids(given.jobs), given.left) == (["short"], 0), "what is left is not for it"
    record = await redis.hgetall(queue.keys.job("long"))
    assert record[b"attempts"] == b"0"
    assert ids((await claim(queue, "large", LARGE)).jobs) == ["long"]


async def test_a_job_of_many_texts_is_left_to_a_worker_with_more_slots(queue: JobQueue) -> None:
    await queue.beat("large", BIG_WORKER)
    await queue.submit(request(n=4), id="many", tokens=40)
    given = await claim(queue, "small", SMALL)
    assert (given.jobs, given.left) == ([], 0)
    assert ids((await claim(queue, "large", LARGE, slots=8)).jobs) == ["many"]


async def test_with_no_larger_worker_alive_the_small_one_gets_it_and_refuses(
    queue: JobQueue, redis: Redis
) -> None:
    """Nobody waits for a worker that is dead, too small itself, or about to stop."""
    await queue.beat("as-small", a_worker(slots=2, capacity_tokens=SMALL, context_tokens=LARGE))
    stopping = BIG_WORKER.model_copy(update={"state": WorkerPhase.DRAINING})
    await queue.beat("stopping", stopping)
    silent_ms = await server_ms(redis) - WORKER_ALIVE_MS - 1_000
    await redis.hset(queue.keys.workers, "dead", b"%d %b" % (silent_ms, BIG_WORKER.to_json()))
    await submit_long(queue, "long")
    given = await claim(queue, "small", SMALL)
    assert ids(given.jobs) == ["long"]


async def test_a_worker_that_loads_may_be_a_larger_one(queue: JobQueue) -> None:
    await queue.beat("new", a_worker(state=WorkerPhase.LOADING))
    await submit_long(queue, "long")
    assert (await claim(queue, "small", SMALL)).jobs == []
    await queue.beat("new", a_worker(slots=2, capacity_tokens=SMALL, context_tokens=SMALL))
    assert ids((await claim(queue, "small", SMALL)).jobs) == ["long"]


@pytest.mark.parametrize("number", [3, 150])
async def test_passed_over_jobs_keep_their_places_and_their_tenants_turn(
    queue: JobQueue, number: int
) -> None:
    await queue.beat("large", BIG_WORKER)
    for i in range(number):
        await submit_long(queue, f"long{i:03}")
    given = await claim(queue, "small", SMALL)
    assert (given.jobs, given.left) == ([], 0)
    given = await claim(queue, "large", LARGE)
    assert ids(given.jobs) == ["long000", "long001"]
    await queue.complete([(job.fence, success(job.id)) for job in given.jobs])


async def test_suspects_for_a_larger_worker_are_left_to_it(queue: JobQueue, redis: Redis) -> None:
    await queue.beat("large", BIG_WORKER)
    await submit_long(queue, "long")
    await put(queue, "short")
    await redis.rpush(queue.keys["suspects"], f"{await server_ms(redis)} long")
    await redis.zrem(queue.keys["lane"] + "normal:default", "long")
    given = await claim(queue, "small", SMALL)
    assert (ids(given.jobs), given.alone) == (["short"], False)
    given = await claim(queue, "large", LARGE)
    assert (ids(given.jobs), given.alone) == (["long"], True)
