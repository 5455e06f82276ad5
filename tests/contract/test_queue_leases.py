"""Leases: renewed, released, run out; who may write and who may not."""

import pytest
from redis.asyncio import Redis

from millpond.messages import EventType, JobEvent, JobStatus
from millpond.queue.claims import Commit, Lease
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from tests.contract.conftest import one_call_counts
from tests.contract.jobs import (
    SHORT_LEASE_S,
    due,
    failed,
    ids,
    lease_over,
    put,
    server_ms,
    success,
    take,
    take_one,
    until,
    with_options,
)


@pytest.fixture
def short(queue: JobQueue, redis: Redis) -> JobQueue:
    """The queue as workers with short leases see it."""
    return with_options(queue, redis, lease_s=SHORT_LEASE_S, retry_delay_s=0.0)


async def event_types(redis: Redis, queue: JobQueue, id: str) -> list[str]:
    entries = await redis.xrange(queue.keys.events(id))
    events = [JobEvent.model_validate_json(fields[b"event"]) for _, fields in entries]
    return [event.reason or str(event.type) for event in events]


async def test_renew_prolongs(queue: JobQueue, short: JobQueue, redis: Redis) -> None:
    await put(queue, "a", "b")
    jobs = await take(short)
    held = [(job.id, job.fence) for job in jobs]
    assert await queue.renew(held) == [Lease.HELD, Lease.HELD]
    for _, ends in await redis.zrange(queue.keys["leases"], 0, -1, withscores=True):
        assert ends - await server_ms(redis) > 20_000
    assert await queue.renew([]) == []


async def test_renew_tells_what_befell_each_job(
    queue: JobQueue, redis: Redis, results: Results
) -> None:
    await put(queue, "late", deadline_s=0.2)
    await put(queue, "fine", "cancelled", "done", "released")
    held = {job.id: job.fence for job in await take(queue)}
    await queue.cancel("cancelled")
    await queue.complete([(held["done"], success("done"))])
    await queue.release([("released", held["released"])])
    deadline = (await results.get("late")).created_ms + 200

    async def passed() -> bool:
        return await server_ms(redis) >= deadline

    await until(passed)
    pairs = [*held.items(), ("unknown", 1), ("fine", held["fine"] + 100)]
    told = dict(zip(pairs, await queue.renew(pairs), strict=True))
    # Of two claims of the same job one is lost, and not the other.
    assert told == dict.fromkeys(pairs, Lease.LOST) | {
        ("fine", held["fine"]): Lease.HELD,
        ("cancelled", held["cancelled"]): Lease.CANCELLED,
        ("late", held["late"]): Lease.EXPIRED,
    }
    assert (await results.get("late")).status is JobStatus.RUNNING  # its worker ends it


async def test_a_lease_that_ran_out_unnoticed_can_be_renewed(
    queue: JobQueue, short: JobQueue, redis: Redis
) -> None:
    await put(queue, "a")
    job = await take_one(short)
    await lease_over(redis, queue)
    assert await queue.renew([("a", job.fence)]) == [Lease.HELD]
    assert await queue.reap() == (0, 0, 0, 0)
    assert await queue.complete([(job.fence, success("a"))]) == [Commit.STORED]


async def test_an_expired_lease_brings_the_job_back_alone(
    queue: JobQueue, short: JobQueue, redis: Redis, results: Results
) -> None:
    await put(queue, "a", "b")
    first = await take_one(short)
    await lease_over(redis, queue)
    assert await queue.reap() == (1, 0, 0, 0)
    assert (await results.queue_state()).leases_lost == 1
    view = await results.get("a")
    assert (view.status, view.attempts, view.worker) == (JobStatus.QUEUED, 0, None)
    assert view.retry_in_ms is not None
    await due(redis, queue)
    again = await take(queue)
    assert ids(again) == ["a"]
    assert again[0].attempt == 1, "a death is not the job's attempt"
    assert again[0].fence > first.fence
    assert ids(await take(queue)) == ["b"]
    assert await event_types(redis, queue, "a") == ["started", "lease_expired", "started"]


async def test_a_dead_workers_window_comes_back_by_halves(
    queue: JobQueue, short: JobQueue, redis: Redis
) -> None:
    names = ["k", "c", "z", "a", "m"]
    await put(queue, *names, "behind")
    assert ids(await take(short, 5)) == names
    await lease_over(redis, queue)
    halves = [await take(queue), await take(queue)]
    assert [ids(half) for half in halves] == [names[:2], names[2:]]
    assert {job.attempt for half in halves for job in half} == {1}, "no attempt is spent"
    assert ids(await take(queue)) == ["behind"]


async def test_a_claim_reaps_by_itself(queue: JobQueue, short: JobQueue, redis: Redis) -> None:
    await put(queue, "a")
    await take_one(short)
    await lease_over(redis, queue)
    assert (await take_one(short)).id == "a"
    await lease_over(redis, queue)


async def test_reaping_wakes_an_idle_worker(queue: JobQueue, short: JobQueue, redis: Redis) -> None:
    await put(queue, "a")
    assert await queue.wait_for_work(1.0) is True
    await take_one(short)
    await lease_over(redis, queue)
    await short.reap()
    assert await queue.wait_for_work(1.0) is True


async def test_trials_alone_wait_longer_each_time(
    queue: JobQueue, short: JobQueue, redis: Redis
) -> None:
    """Whatever kills one worker after the other is to be over by the last of them."""
    slow = with_options(short, redis, retry_delay_s=10.0, retry_delay_max_s=50.0)
    await put(queue, "a")
    for wait_s in (10, 40, 50, 50, 50):
        await take_one(short)
        await lease_over(redis, queue)
        await slow.reap()
        due_ms = await redis.zscore(queue.keys["delayed"], "a")
        assert 0 <= await server_ms(redis) + wait_s * 1000 - due_ms < 5_000
        await redis.zadd(queue.keys["delayed"], {"a": 0})
        await redis.hset(queue.keys.job("a"), "due", "0")


async def test_too_many_lost_leases_bury_the_job(
    queue: JobQueue, short: JobQueue, redis: Redis, results: Results
) -> None:
    await put(queue, "a", metadata={"who": 'me "and" you/ä'})
    for _ in range(queue.options.max_deaths):
        job = await take_one(short)
        assert job.attempt == 1
        await lease_over(redis, queue)
        await short.reap()
    view = await results.get("a")
    assert view.status is JobStatus.FAILED
    assert view.result is not None
    assert view.result.error is not None
    assert view.result.error.code == "attempts_exhausted"
    assert "6 times while it ran alone" in view.result.error.message
    assert view.result.metadata == {"who": 'me "and" you/ä'}
    assert await redis.zrange(queue.keys.dead, 0, -1) == [b"a"]
    assert await redis.pttl(queue.keys.body("a")) > 0
    assert await take(queue) == []
    # The last holder did not end it, and is told so.
    assert await queue.complete([(job.fence, success("a"))]) == [Commit.LOST]


async def test_a_zombie_is_refused_everywhere(
    queue: JobQueue, short: JobQueue, redis: Redis, results: Results
) -> None:
    await put(queue, "a")
    zombie = await take_one(short)
    await lease_over(redis, queue)
    await short.reap()
    for _ in range(2):  # while the job is queued, then while another has it
        assert await queue.complete([(zombie.fence, success("a", "late"))]) == [Commit.LOST]
        assert await queue.fail(zombie.fence, zombie.attempt, failed("a")) is Commit.LOST
        assert await queue.release([("a", zombie.fence)]) == 0
        assert await queue.renew([("a", zombie.fence)]) == [Lease.LOST]
        jobs = await take(queue)
    assert jobs == []
    view = await results.get("a")
    assert (view.status, view.attempts) == (JobStatus.RUNNING, 1)


async def test_reaping_a_job_to_be_cancelled_ends_it(
    queue: JobQueue, short: JobQueue, redis: Redis, results: Results
) -> None:
    await put(queue, "a")
    job = await take_one(short)
    assert await queue.cancel("a") is JobStatus.RUNNING
    await lease_over(redis, queue)
    await queue.reap()
    assert (await results.get("a")).status is JobStatus.CANCELLED
    assert await queue.complete([(job.fence, success("a"))]) == [Commit.LOST]


async def test_reaping_past_the_deadline_expires_the_job(
    queue: JobQueue, redis: Redis, results: Results
) -> None:
    await put(queue, "a", deadline_s=0.03)
    await take_one(with_options(queue, redis, lease_s=0.05))
    await lease_over(redis, queue)
    await queue.reap()
    assert (await results.get("a")).status is JobStatus.EXPIRED


@one_call_counts
async def test_reap_is_bounded(queue: JobQueue, short: JobQueue, redis: Redis) -> None:
    await put(queue, *(f"j{i}" for i in range(130)))
    await take(short, 130)
    await lease_over(redis, queue)
    assert (await queue.reap())[0] == 100
    assert (await queue.reap())[0] == 30
    assert (await queue.reap())[0] == 0


async def test_release_refunds_and_keeps_the_order(
    queue: JobQueue, redis: Redis, results: Results
) -> None:
    await put(queue, "a", "b", "c", "d")
    jobs = await take(queue, 3)
    held = [(job.id, job.fence) for job in jobs]
    assert await queue.release(held) == 3
    assert await queue.release(held) == 0
    assert await queue.release([]) == 0
    assert (await results.get("a")).attempts == 0
    again = await take(queue)
    assert ids(again) == ["a", "b", "c", "d"]
    assert {job.attempt for job in again} == {1}
    assert await event_types(redis, queue, "a") == ["started", "released", "started"]


async def test_release_passes_over_what_has_ended_or_moved_on(queue: JobQueue) -> None:
    await put(queue, "a", "b")
    one, other = await take(queue)
    await queue.complete([(one.fence, success("a"))])
    pairs = [("a", one.fence), ("b", other.fence), ("c", 7), ("b", 999)]
    assert await queue.release(pairs) == 1
    assert ids(await take(queue)) == ["b"]


async def test_release_of_a_job_to_be_cancelled_ends_it(queue: JobQueue, results: Results) -> None:
    await put(queue, "a")
    job = await take_one(queue)
    await queue.cancel("a")
    assert await queue.release([("a", job.fence)]) == 0
    assert (await results.get("a")).status is JobStatus.CANCELLED
    assert await take(queue) == []


async def test_deltas_of_a_lost_lease_are_not_written(queue: JobQueue, redis: Redis) -> None:
    await put(queue, "a", "b")
    one, other = await take(queue)
    await queue.release([("a", one.fence)])

    def event(id: str) -> JobEvent:
        return JobEvent(type=EventType.DELTA, id=id, attempt=1, text="x")

    answers = await queue.emit([(one.fence, event("a")), (other.fence, event("b"))])
    assert answers == [Commit.LOST, Commit.STORED]
    assert await event_types(redis, queue, "a") == ["started", "released"]
    assert await event_types(redis, queue, "b") == ["started", "delta"]
    assert await queue.emit([]) == []


async def test_fences_grow_though_the_server_forgets(queue: JobQueue, redis: Redis) -> None:
    """A server that lost its last second would hand out the same numbers again, and a holder whose
    claim it forgot could write in another's name."""
    await put(queue, "a")
    kept = {key: await redis.dump(key) for key in await redis.keys("*")}
    forgotten = await take_one(queue)
    while await server_ms(redis) <= forgotten.claimed_ms:
        pass  # no server is back within a millisecond
    await redis.flushall()
    for key, value in kept.items():
        await redis.restore(key, 0, value)
    job = await take_one(queue)
    assert job.fence > forgotten.fence
    assert await queue.complete([(forgotten.fence, success("a"))]) == [Commit.LOST]
