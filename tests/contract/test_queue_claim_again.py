"""A claim whose answer was lost is made again under its nonce, and hands out the same jobs."""

from redis.asyncio import Redis

from millpond.queue.claims import Claim, Commit
from millpond.queue.job_queue import JobQueue
from millpond.queue.scripts import load_script
from millpond.queue.submission import NewJob, Submission
from tests.contract.jobs import (
    PLENTY,
    failed,
    ids,
    lease_over,
    put,
    request,
    server_ms,
    success,
    until,
    with_options,
)


async def claim(queue: JobQueue, nonce: str, count: int = 100, worker: str = "w") -> Claim:
    return await queue.claim(
        worker, count, budget_tokens=PLENTY, capacity_tokens=PLENTY, nonce=nonce
    )


async def test_the_same_nonce_gives_the_same_jobs(queue: JobQueue) -> None:
    await put(queue, "a", "b", "c")
    first = await claim(queue, "one", 2)
    for count in (2, 1, 0):
        again = await claim(queue, "one", count)
        assert [(j.id, j.fence, j.attempt, j.body) for j in again.jobs] == [
            (j.id, j.fence, j.attempt, j.body) for j in first.jobs
        ]
        assert (again.left, again.alone) == (1, False)
    assert ids((await claim(queue, "two")).jobs) == ["c"]
    assert [await queue.complete([(j.fence, success(j.id))]) for j in again.jobs] == [
        [Commit.STORED]
    ] * 2


async def test_a_claim_hands_out_the_trace_of_the_submit(queue: JobQueue) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await queue.submit_many([NewJob(request(), "a", traceparent=trace), NewJob(request(), "b")])
    for _ in range(2):
        jobs = (await claim(queue, "one")).jobs
        assert {job.id: job.traceparent for job in jobs} == {"a": trace, "b": None}
    [known] = await queue.submit_many(
        [NewJob(request(), "a", traceparent=trace.replace("0a", "0b"))]
    )
    assert isinstance(known, Submission), "the trace does not count for idempotency"
    assert not known.created


async def test_a_nonce_is_the_workers_own_and_its_last(queue: JobQueue) -> None:
    await put(queue, "a", "b", "c")
    assert ids((await claim(queue, "one", 1)).jobs) == ["a"]
    assert ids((await claim(queue, "one", 1, worker="other")).jobs) == ["b"]
    assert ids((await claim(queue, "two", 1)).jobs) == ["c"]
    await put(queue, "d")
    assert ids((await claim(queue, "one", 1)).jobs) == ["d"]


async def test_a_claim_that_never_arrived_is_a_new_one(queue: JobQueue) -> None:
    await put(queue, "a")
    assert (await claim(queue, "one", 0)).jobs == []
    assert ids((await claim(queue, "one")).jobs) == ["a"]


async def test_jobs_that_left_its_hands_are_not_handed_out_again(
    queue: JobQueue, redis: Redis
) -> None:
    at_once = with_options(queue, redis, retry_delay_s=0.0)
    names = ["done", "failed", "released", "suspect-1", "suspect-2", "kept"]
    await put(queue, *names)
    held = {job.id: job.fence for job in (await claim(queue, "one")).jobs}
    await queue.complete([(held["done"], success("done"))])
    await at_once.fail(held["failed"], 1, failed("failed"))
    await queue.release([("released", held["released"])])
    await queue.suspect([(held[id], failed(id)) for id in ("suspect-1", "suspect-2")])
    assert ids((await claim(queue, "one", 0)).jobs) == ["kept"]
    assert ids((await claim(queue, "other", worker="v")).jobs) == ["suspect-1"]
    assert ids((await claim(queue, "one", 0)).jobs) == ["kept"]


async def test_suspects_are_alone_again(queue: JobQueue) -> None:
    await put(queue, "a", "b")
    held = (await claim(queue, "one")).jobs
    await queue.suspect([(job.fence, failed(job.id)) for job in held])
    for _ in range(2):
        again = await claim(queue, "two")
        assert (ids(again.jobs), again.alone) == (["a"], True)


async def test_their_leases_begin_anew(queue: JobQueue, redis: Redis) -> None:
    await put(queue, "a")
    await claim(with_options(queue, redis, lease_s=2.0), "one")
    before = await server_ms(redis)
    await claim(queue, "one")
    ends = await redis.zscore(queue.keys["leases"], "a")
    assert ends >= before + 30_000
    assert 29_000 < await redis.pttl(queue.keys["last_claim"] + "w") <= 30_000


async def test_it_is_forgotten_with_its_leases(queue: JobQueue, redis: Redis) -> None:
    short = with_options(queue, redis, lease_s=0.05)
    await put(queue, "a", "b")
    await claim(short, "one")
    await lease_over(redis, queue)

    async def forgotten() -> bool:
        return not await redis.exists(queue.keys["last_claim"] + "w")

    await until(forgotten)
    assert ids((await claim(short, "one")).jobs) == ["a"], "a new claim, of a suspect"
    await lease_over(redis, queue)


async def test_a_command_that_the_client_repeats_is_one_claim(
    queue: JobQueue, redis: Redis
) -> None:
    """The client library sends the very same bytes again when the connection breaks."""
    await put(queue, "a", "b")
    script = load_script("claim")
    keys = [queue.keys[name] for name in script.key_names]
    sizes = [1, PLENTY, PLENTY, 30_000, 100, PLENTY, PLENTY]
    args = ["w", "one", *sizes, queue.options.to_json()]
    answers = [await redis.eval(script.source, len(keys), *keys, *args) for _ in range(3)]
    [fence] = {job[1] for _, _, [job], *_ in answers}
    assert {(left, *job[:3]) for _, left, [job], *_ in answers} == {(1, b"a", fence, 1)}
