"""Jobs whose worker died with them: the cause is cornered, the innocents pay nothing."""

import pytest
from redis.asyncio import Redis

from millpond.messages import JobStatus
from millpond.queue.claims import Claim
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from tests.contract.conftest import one_call_counts
from tests.contract.invariants import check_invariants
from tests.contract.jobs import (
    PLENTY,
    SHORT_LEASE_S,
    a_worker,
    due,
    failed,
    ids,
    lease_over,
    put,
    success,
    take,
    take_one,
    until,
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
    assert await redis.zrange(short.keys.dead, 0, -1) == [b"j13"]


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


async def suspects(queue: JobQueue, *names: str) -> None:
    """These jobs, as two groups that wait to be tried."""
    await put(queue, *names)
    jobs = await take(queue)
    await queue.suspect([(job.fence, failed(job.id)) for job in jobs])


async def claim(queue: JobQueue, worker: str, *, busy: bool = False) -> Claim:
    budget = PLENTY - 1 if busy else PLENTY
    return await queue.claim(worker, 8, budget_tokens=budget, capacity_tokens=PLENTY)


async def test_an_idle_worker_runs_suspects_first_and_alone(queue: JobQueue) -> None:
    await suspects(queue, "a", "b")
    await put(queue, "c")
    for worker, name in (("w1", "a"), ("w1", "b")):
        given = await claim(queue, worker)
        assert (ids(given.jobs), given.alone, given.draining) == ([name], True, False)
        await queue.complete([(given.jobs[0].fence, success(name))])
    given = await claim(queue, "w1")
    assert (ids(given.jobs), given.alone) == (["c"], False)


async def test_busy_workers_go_on_as_if_there_were_no_suspects(queue: JobQueue) -> None:
    await suspects(queue, "a", "b")
    await put(queue, "c", priority="interactive")
    given = await claim(queue, "busy", busy=True)
    assert (ids(given.jobs), given.alone, given.draining) == (["c"], False, False)
    given = await claim(queue, "busy", busy=True)
    assert (given.jobs, given.left) == ([], 0), "what is left is not for a busy worker"


async def test_one_worker_tries_suspects_and_the_others_take_the_rest_first(
    queue: JobQueue,
) -> None:
    await suspects(queue, "a", "b")
    await put(queue, "c")
    assert ids((await claim(queue, "w1")).jobs) == ["a"]
    assert ids((await claim(queue, "w2")).jobs) == ["c"]
    given = await claim(queue, "w3")
    assert (given.jobs, given.left) == ([], 0), "somebody must be left to admit what comes"
    for worker in ("w1", "w2", "w3"):
        await queue.beat(worker, a_worker())
    given = await claim(queue, "w3")
    assert (ids(given.jobs), given.alone) == (["b"], True), "w2 is left"


async def test_one_worker_drains_for_suspects_that_have_waited_too_long(
    queue: JobQueue, redis: Redis
) -> None:
    impatient = with_options(queue, redis, suspect_wait_s=0.0)
    await suspects(queue, "a", "b")
    await put(queue, "c")
    for _ in range(2):
        given = await claim(impatient, "w1", busy=True)
        assert (given.jobs, given.left, given.draining) == ([], 0, True)
    given = await claim(impatient, "w2", busy=True)
    assert (ids(given.jobs), given.draining) == (["c"], False)
    given = await claim(impatient, "w1")
    assert (ids(given.jobs), given.alone) == (["a"], True)
    # While it tries one group nobody drains for the next.
    await put(queue, "d")
    given = await claim(impatient, "w2", busy=True)
    assert (ids(given.jobs), given.draining) == (["d"], False)


async def test_a_patient_queue_drains_nobody(queue: JobQueue, redis: Redis) -> None:
    patient = with_options(queue, redis, suspect_wait_s=60.0)
    await suspects(queue, "a", "b")
    assert not (await claim(patient, "w1", busy=True)).draining


async def test_an_idle_worker_relieves_the_one_that_drains(queue: JobQueue, redis: Redis) -> None:
    impatient = with_options(queue, redis, suspect_wait_s=0.0)
    await suspects(queue, "a", "b")
    await put(queue, "c")
    assert (await claim(impatient, "w1", busy=True)).draining
    assert ids((await claim(impatient, "idle")).jobs) == ["a"]
    given = await claim(impatient, "w1", busy=True)
    assert (ids(given.jobs), given.draining) == (["c"], False)


async def test_a_drainer_that_died_is_replaced(queue: JobQueue, redis: Redis) -> None:
    brief = with_options(queue, redis, suspect_wait_s=0.0, lease_s=SHORT_LEASE_S)
    await suspects(queue, "a", "b")
    assert (await claim(brief, "dead", busy=True)).draining

    async def replaced() -> bool:
        return (await claim(brief, "w2", busy=True)).draining

    await until(replaced)


async def test_a_trial_that_died_is_no_reservation(queue: JobQueue, redis: Redis) -> None:
    brief = with_options(queue, redis, suspect_wait_s=0.0, lease_s=SHORT_LEASE_S)
    await suspects(queue, "a", "b")
    assert ids((await claim(brief, "dead")).jobs) == ["a"]
    assert not (await claim(brief, "w2", busy=True)).draining
    await lease_over(redis, queue)
    assert (await claim(brief, "w2", busy=True)).draining


async def test_a_job_that_failed_is_tried_again_in_its_lane(queue: JobQueue, redis: Redis) -> None:
    """Its worker lives, so it endangers nobody beside it."""
    await put(queue, "a")
    job = await take_one(queue)
    await queue.fail(job.fence, job.attempt, failed("a"))
    await due(redis, queue)
    given = await claim(queue, "busy", busy=True)
    assert (ids(given.jobs), given.jobs[0].attempt, given.alone) == (["a"], 2, False)


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


@one_call_counts
async def test_what_a_dead_worker_claimed_last_is_settled_with_the_rest(
    queue: JobQueue, redis: Redis
) -> None:
    """A job claimed after the last renewal has a later lease; it must not be blamed alone."""
    await put(queue, "a", "b")
    await take(with_options(queue, redis, lease_s=0.3), 1, worker="dead")
    await take(queue, 1, worker="dead")
    await put(queue, "c")
    await take(queue, 1, worker="alive")
    first_ends = (await redis.zrange(queue.keys["leases"], 0, 0, withscores=True))[0][1]
    while True:
        seconds, micros = await redis.time()
        if int(seconds) * 1000 + int(micros) // 1000 > first_ends:
            break
    assert (await queue.reap())[0] == 2
    groups = await redis.lrange(queue.keys["suspects"], 0, -1)
    assert [group.split()[1:] for group in groups] == [[b"a"], [b"b"]]
    assert await redis.zrange(queue.keys["leases"], 0, -1) == [b"c"]


async def test_a_worker_whose_leases_end_is_out_of_the_registry(
    short: JobQueue, redis: Redis, results: Results
) -> None:
    """It would be counted among those that are left to admit; alive, it signs again."""
    await put(short, "a", "b")
    for worker in ("dead", "alive"):
        await short.beat(worker, a_worker())
    await take(short, worker="dead")
    await lease_over(redis, short)
    await short.reap()
    assert [worker.id for worker in (await results.queue_state()).workers] == ["alive"]
