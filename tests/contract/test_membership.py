"""Who may join a queue: the same model by its content, the same version of keys and scripts."""

import asyncio

import pytest
from redis.asyncio import Redis

from millpond.messages.worker_state import WORKER_ALIVE_MS, WorkerState
from millpond.queue import membership
from millpond.queue.job_queue import JobQueue
from millpond.queue.membership import (
    QUEUE_VERSION,
    Membership,
    OtherModelError,
    QueueVersionError,
)
from millpond.queue.results import Results
from millpond.tasks import end_tasks
from tests.contract.jobs import a_worker, put, server_ms, success, take_one

SMALL = a_worker(model="small", model_identity="small-a")
LARGE = a_worker(model="large", model_identity="large-a")


@pytest.fixture
def members(queue: JobQueue, redis: Redis) -> Membership:
    return Membership(redis, "test")


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "POLL_S", 0.005)


async def sign(redis: Redis, queue: JobQueue, worker: str, state: WorkerState, age_ms: int) -> None:
    entry = b"%d %b" % (await server_ms(redis) - age_ms, state.to_json())
    await redis.hset(queue.keys.workers, worker, entry)


async def test_the_first_worker_makes_the_queue_its_own(
    members: Membership, results: Results
) -> None:
    assert await members.join("w", SMALL) == "small"
    [worker] = (await results.queue_state()).workers
    assert (worker.id, worker.state) == ("w", SMALL)


async def test_one_of_the_same_content_joins_under_the_queues_name(members: Membership) -> None:
    await members.join("w1", SMALL)
    assert await members.join("w2", a_worker(model="copy", model_identity="small-a")) == "small"


async def test_another_model_is_refused_while_jobs_wait(
    members: Membership, queue: JobQueue
) -> None:
    await members.join("w1", SMALL)
    await queue.beat("w1", None)
    await put(queue, "a")
    with pytest.raises(OtherModelError) as refused:
        await members.join("w2", LARGE)
    for part in ("queue test", "small (small-a", "unfinished jobs: 1", "large (large-a)", "files"):
        assert part in str(refused.value)
    job = await take_one(queue)
    with pytest.raises(OtherModelError, match="unfinished jobs: 1"):
        await members.join("w2", LARGE)
    await queue.complete([(job.fence, success("a"))])
    assert await members.join("w2", LARGE) == "large"


async def test_another_model_is_refused_while_a_worker_beats(
    members: Membership, queue: JobQueue, redis: Redis, results: Results
) -> None:
    await members.join("w1", SMALL)

    async def beat() -> None:
        while True:
            await queue.beat("w1", SMALL)
            await asyncio.sleep(0.01)

    beating = asyncio.create_task(beat())
    with pytest.raises(OtherModelError, match="other workers alive: 1"):
        await members.join("w2", a_worker(model="large", model_identity="small-b"))
    await end_tasks(beating)
    assert [w.id for w in (await results.queue_state()).workers] == ["w1"]


async def test_a_silent_worker_is_waited_out(
    members: Membership, queue: JobQueue, redis: Redis
) -> None:
    """It was killed: nobody knows yet, and it will never say so."""
    await members.join("w1", SMALL)
    await sign(redis, queue, "w1", SMALL, WORKER_ALIVE_MS - 100)
    assert await members.join("w2", LARGE) == "large"


async def test_jobs_that_wait_for_the_first_worker_bind_no_model(
    members: Membership, queue: JobQueue
) -> None:
    await members.check_version()
    await put(queue, "a")
    assert await members.join("w", SMALL) == "small"
    assert await members.join("w", SMALL) == "small"  # and it may say so twice


@pytest.mark.parametrize(
    ("version", "advice"),
    [(QUEUE_VERSION - 1, "let the older workers finish"), (QUEUE_VERSION + 1, "update this")],
)
async def test_a_queue_of_another_version_is_refused_while_in_use(
    members: Membership, queue: JobQueue, redis: Redis, version: int, advice: str
) -> None:
    await redis.hset(queue.keys["about"], "version", version)
    await put(queue, "a")
    for call in (members.check_version(), members.join("w", SMALL)):
        with pytest.raises(QueueVersionError, match=f"in version {version}.*{advice}"):
            await call
    await queue.cancel("a")
    await members.check_version()
    assert await redis.hget(queue.keys["about"], "version") == b"%d" % QUEUE_VERSION


async def test_who_runs_learns_that_the_version_has_changed(
    members: Membership, queue: JobQueue, redis: Redis
) -> None:
    await members.still_agrees()
    await members.check_version()
    await members.still_agrees()
    await redis.hset(queue.keys["about"], "version", QUEUE_VERSION + 1)
    with pytest.raises(QueueVersionError):
        await members.still_agrees()
    assert await redis.hget(queue.keys["about"], "version") == b"%d" % (QUEUE_VERSION + 1)
