"""Tokens kept with a running job: who goes on behind them, and when they go."""

import pytest
from redis.asyncio import Redis

from millpond.messages import EventType, JobEvent
from millpond.queue.claims import ClaimedJob, Commit, KeptText, KeptTokens
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from tests.contract.jobs import (
    SHORT_LEASE_S,
    delta,
    failed,
    lease_over,
    put,
    success,
    take,
    take_one,
    with_options,
)

BYTES = bytes(range(256))  # whatever workers make of it


def kept(job: ClaimedJob, tokens: bytes, offset: int = 0, index: int = 0) -> tuple[int, KeptTokens]:
    return job.fence, KeptTokens(job.id, index, offset, tokens)


async def types(redis: Redis, queue: JobQueue, id: str) -> list[str]:
    """Of the job's events; instead of `requeued` and `reset` their reasons, too."""
    entries = await redis.xrange(queue.keys.events(id))
    events = [JobEvent.model_validate_json(fields[b"event"]) for _, fields in entries]
    return [f"{e.type} {e.reason}".rstrip() for e in events]


async def test_a_job_goes_on_where_a_dead_worker_stopped(queue: JobQueue, redis: Redis) -> None:
    dying = with_options(queue, redis, lease_s=SHORT_LEASE_S, retry_delay_s=0.001)
    await put(queue, "a", "fresh")
    one, _ = await take(dying)
    assert one.kept == ()
    assert await queue.emit([delta(one, "said")], [kept(one, BYTES)]) == [Commit.STORED] * 2
    await lease_over(redis, queue)
    await dying.reap()
    [again] = [job for job in await take(queue, worker="v") if job.id == "a"]
    assert again.kept == (KeptText(4, 0, BYTES),)
    assert (again.attempt, again.fence > one.fence) == (1, True)
    assert await queue.emit([delta(one, "late", 4)], [kept(one, b"late", 256)]) == [Commit.LOST] * 2
    assert (
        await queue.emit([delta(again, "!", 4)], [kept(again, b"new", 256)]) == [Commit.STORED] * 2
    )
    assert await types(redis, queue, "a") == [
        *("started", "delta", "requeued lease_expired", "started", "delta")
    ]
    assert await redis.get(queue.keys.kept("a")) == BYTES + b"new"
    await queue.complete([(again.fence, success("a"))])
    assert not await redis.exists(queue.keys.kept("a"))


async def test_a_released_job_and_the_suspects_of_a_broken_engine_go_on(
    queue: JobQueue, redis: Redis
) -> None:
    await put(queue, "a", "b")
    jobs = await take(queue)
    await queue.emit([], [kept(job, b"1234") for job in jobs])
    await queue.release([(job.id, job.fence) for job in jobs])
    jobs = await take(queue)
    await queue.emit([], [kept(job, b"5678", 4) for job in jobs])
    await queue.suspect([(job.fence, failed(job.id)) for job in jobs])
    [alone] = await take(queue)
    await queue.suspect([(alone.fence, failed(alone.id))])
    tried = [*await take(queue, worker="v"), *await take(queue, worker="w")]
    assert {job.kept for job in tried} == {(KeptText(0, 0, b"12345678"),)}


async def test_an_attempt_that_failed_begins_afresh(queue: JobQueue, redis: Redis) -> None:
    """What went wrong may be in the tokens."""
    retrying = with_options(queue, redis, retry_delay_s=0.001)
    await put(queue, "a")
    job = await take_one(queue)
    await queue.emit([delta(job, "said")], [kept(job, BYTES)])
    assert await retrying.fail(job.fence, job.attempt, failed("a")) is Commit.RETRY
    assert not await redis.exists(queue.keys.kept("a"))
    assert (await types(redis, queue, "a"))[-1] == "reset failed"


@pytest.mark.parametrize("lost", ["all", "the end"])
async def test_text_that_is_not_covered_is_taken_back(
    queue: JobQueue, redis: Redis, lost: str
) -> None:
    """A server may have lost what was kept: then what was streamed is void, too."""
    await put(queue, "a")
    job = await take_one(queue)
    await queue.emit([delta(job, "said")], [kept(job, b"1234")])
    if lost == "all":
        await redis.delete(queue.keys.kept("a"))
    else:
        assert await queue.emit([], [kept(job, b"9012", 8)]) == [Commit.KNOWN]
    await queue.release([("a", job.fence)])
    assert (await take_one(queue)).kept == ()
    assert (await types(redis, queue, "a"))[-2:] == ["reset released", "started"]


async def test_tokens_that_come_again_are_kept_once(queue: JobQueue, redis: Redis) -> None:
    await put(queue, "a")
    job = await take_one(queue)
    assert await queue.emit([], [kept(job, b"1234")]) == [Commit.STORED]
    assert await queue.emit([], [kept(job, b"1234")]) == [Commit.KNOWN]
    assert await redis.get(queue.keys.kept("a")) == b"1234"


async def test_several_texts_have_their_own_and_a_claim_repeated_has_them_too(
    queue: JobQueue, redis: Redis
) -> None:
    await put(queue, "a", n=3)
    job = await take_one(queue)
    said = JobEvent(type=EventType.DELTA, id="a", attempt=1, text="one", index=2)
    thought = JobEvent(type=EventType.REASONING, id="a", attempt=1, text="hm", index=0)
    await queue.emit(
        [(job.fence, said), (job.fence, thought)], [kept(job, b"22", index=2), kept(job, b"0")]
    )
    await queue.release([("a", job.fence)])
    expected = (KeptText(0, 2, b"0"), KeptText(0, 0, b""), KeptText(3, 0, b"22"))
    for _ in range(2):
        claim = await queue.claim("w", 9, budget_tokens=99, capacity_tokens=99, nonce="same")
        assert [job.kept for job in claim.jobs] == [expected]


async def test_they_count_for_the_tenant_until_the_job_has_ended(
    queue: JobQueue, redis: Redis, results: Results
) -> None:
    """The invariants, which are checked after each test, compare the sums."""
    await put(queue, "done", "cancelled", "goes-on")
    jobs = {job.id: job for job in await take(queue)}
    before = int(await redis.hget(queue.keys["stored"] + "default", "bodies"))
    await queue.emit([], [kept(job, BYTES) for job in jobs.values()])
    assert int(await redis.hget(queue.keys["stored"] + "default", "bodies")) == before + 3 * 256
    await queue.complete([(jobs["done"].fence, success("done"))])
    await queue.cancel("cancelled")
    await queue.release([("cancelled", jobs["cancelled"].fence)])
    keys = [queue.keys.kept(id) for id in ("done", "cancelled", "goes-on")]
    assert [await redis.exists(key) for key in keys] == [0, 0, 1]
