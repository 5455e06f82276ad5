"""A server that forgets its scripts, restarts, is away or read-only. A full one is in test_full_server.py."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from millpond.errors import QueueUnavailableError
from millpond.local.server import RedisServer, ServerOptions, bundled_server, free_port
from millpond.queue.claims import Commit, Lease
from millpond.queue.connection import connect, pool
from millpond.queue.job_queue import JobQueue, QueueOptions
from millpond.queue.results import Results
from millpond.queue.scripts import unavailable
from millpond.queue.submission import NewJob
from millpond.queue.subscriptions import Subscriptions
from tests.contract.invariants import check_invariants
from tests.contract.jobs import (
    a_worker,
    delta,
    failed,
    ids,
    put,
    request,
    success,
    take,
    take_one,
)

CALLS: dict[str, Callable[[JobQueue], Awaitable[object]]] = {
    "submit": lambda q: q.submit(request()),
    "submit_many": lambda q: q.submit_many([NewJob(request()), NewJob(request())]),
    "claim": lambda q: q.claim("w", 1, budget_tokens=1, capacity_tokens=1),
    "renew": lambda q: q.renew([("a", 1)]),
    "complete": lambda q: q.complete([(1, success("a"))]),
    "fail": lambda q: q.fail(1, 1, failed("a")),
    "release": lambda q: q.release([("a", 1)]),
    "cancel": lambda q: q.cancel("a"),
    "reap": lambda q: q.reap(),
    "beat": lambda q: q.beat("w", a_worker()),
    "try_write": lambda q: q.try_write(),
    "depth": lambda q: q.depth(),
    "wait_for_work": lambda q: q.wait_for_work(0.01),
}


@pytest.fixture
async def real(redis_server: RedisServer) -> AsyncIterator[Redis]:
    redis = connect(redis_server.url)
    yield redis
    await redis.aclose()


async def test_forgotten_scripts_are_taught_again(queue: JobQueue, redis: Redis) -> None:
    for i in range(3):
        await redis.script_flush()
        await queue.submit_many([NewJob(request(), id=f"{i}-{j}") for j in range(3)])
        await redis.script_flush()
        jobs = await take(queue)
        assert len(jobs) == 3
        await redis.script_flush()
        await queue.renew([(job.id, job.fence) for job in jobs])
        await redis.script_flush()
        await queue.emit([delta(job, "x") for job in jobs])
        await redis.script_flush()
        answers = await queue.complete([(job.fence, success(job.id)) for job in jobs])
        assert answers == [Commit.STORED] * 3


async def test_scripts_forgotten_at_any_moment(queue: JobQueue, redis: Redis) -> None:
    """A flush in the middle of a pipeline makes a part of its calls fail; only those run again."""
    done = False

    async def forget() -> None:
        while not done:
            await redis.script_flush()
            await asyncio.sleep(0)

    forgetting = asyncio.create_task(forget())
    for i in range(10):
        jobs = [NewJob(request(), id=f"{i}-{j}") for j in range(20)]
        answers = await queue.submit_many(jobs)
        assert [getattr(answer, "created", None) for answer in answers] == [True] * 20
    done = True
    await forgetting
    assert await queue.depth() == 200
    assert len(await take(queue, 500)) == 200


async def test_a_restart_keeps_everything(redis_server: RedisServer, real: Redis) -> None:
    queue = JobQueue(real, "test", QueueOptions(max_attempts=1))
    await put(queue, "done", "dead", "running", "queued", deadline_s=600.0)
    await put(queue, "batch", priority="batch")
    done, dead, running = await take(queue, 3)
    await queue.emit([delta(running, "text")])
    await queue.complete([(done.fence, success("done"))])
    await queue.fail(dead.fence, 1, failed("dead"))
    await queue.beat("w", a_worker())
    before = (await check_invariants(real, queue.keys)).raw
    await redis_server.stop()
    await redis_server.start()
    assert (await check_invariants(real, queue.keys)).raw == before
    assert await queue.renew([("running", running.fence)]) == [Lease.HELD]
    assert await queue.complete([(running.fence, success("running"))]) == [Commit.STORED]
    assert ids(await take(queue)) == ["queued", "batch"]
    await check_invariants(real, queue.keys)


async def test_nothing_accepted_is_lost_to_a_kill_with_fsync_always(tmp_path: Path) -> None:
    options = ServerOptions(tmp_path / "redis", free_port(), append_fsync="always")
    async with RedisServer(options, bundled_server()) as server:
        redis = connect(server.url)
        queue = JobQueue(redis, "test")
        accepted: list[str] = []

        async def submit_until_it_dies() -> None:
            with contextlib.suppress(QueueUnavailableError):
                while True:
                    accepted.append((await queue.submit(request())).id)

        tasks = [asyncio.create_task(submit_until_it_dies()) for _ in range(8)]
        while len(accepted) < 50:
            await asyncio.sleep(0)
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await asyncio.gather(*tasks)
        await server.stop()
        await server.start()
        shot = await check_invariants(redis, queue.keys)
        assert shot.ids("job") >= set(accepted)
        await redis.aclose()


@pytest.mark.parametrize("name", CALLS)
async def test_no_server(name: str) -> None:
    redis = connect(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(QueueUnavailableError):
        await CALLS[name](JobQueue(redis, "test"))
    await redis.aclose()


async def test_no_server_for_readers() -> None:
    redis = connect(f"redis://127.0.0.1:{free_port()}/0")
    subscriptions = Subscriptions(redis)
    results = Results(redis, "test", subscriptions)
    calls: list[Awaitable[object]] = [
        results.get("a"),
        results.get_results(["a"]),
        results.wait("a", 1.0),
        anext(results.subscribe("a")),
        results.queue_state(),
    ]
    for call in calls:
        with pytest.raises(QueueUnavailableError):
            await call
    await subscriptions.close()
    await redis.aclose()


async def test_a_server_that_hangs(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SOCKET_TIMEOUT_S", 0.2)
    redis = connect(redis_server.url)
    queue = JobQueue(redis, "test")
    await put(queue, "a")
    assert redis_server.pid is not None
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(QueueUnavailableError):
            await put(queue, "b")
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)
    await put(queue, "b")  # harmless, whether the first one arrived or not
    assert ids(await take(queue)) == ["a", "b"]
    await redis.aclose()


@pytest.mark.parametrize("name", ["submit", "submit_many", "beat"])
async def test_a_read_only_server(real: Redis, name: str) -> None:
    queue = JobQueue(real, "test")
    await put(queue, "a")
    await real.replicaof("127.0.0.1", str(free_port()))
    with pytest.raises(QueueUnavailableError):
        await CALLS[name](queue)
    with pytest.raises(QueueUnavailableError):
        await take(queue)
    await real.replicaof("NO", "ONE")
    await check_invariants(real, queue.keys)
    assert (await take_one(queue)).id == "a"


@pytest.mark.parametrize("name", ["submit", "submit_many", "beat"])
async def test_too_few_replicas(real: Redis, name: str) -> None:
    queue = JobQueue(real, "test")
    await put(queue, "a")
    await real.config_set("min-replicas-to-write", "1")
    with pytest.raises(QueueUnavailableError):
        await CALLS[name](queue)
    with pytest.raises(QueueUnavailableError):
        await take(queue)
    await real.config_set("min-replicas-to-write", "0")
    await check_invariants(real, queue.keys)


async def test_a_server_that_is_loading(redis_server: RedisServer, real: Redis) -> None:
    queue = JobQueue(real, "test", QueueOptions(max_depth=10_000))
    await queue.submit_many([NewJob(request("x" * 400)) for _ in range(2_000)])
    await redis_server.stop()

    class Slow(ServerOptions):
        def arguments(self) -> list[str]:
            slow = ["--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024"]
            return [*super().arguments(), *slow]

    await redis_server.start()
    await real.bgrewriteaof()
    while (await real.info("persistence"))["aof_rewrite_in_progress"]:
        await asyncio.sleep(0.01)
    await redis_server.stop()
    options = redis_server.options
    async with RedisServer(Slow(options.data_dir, options.port), bundled_server()) as slow:
        assert await queue.depth() == 2_000  # `start` returns when the server can answer
        await slow.stop()
        starting = asyncio.create_task(slow.start())
        seen = set()
        while not starting.done():
            try:
                await put(queue, "a")
            except QueueUnavailableError as error:
                seen.add("LOADING" in str(error) or "loading" in str(error))
            await asyncio.sleep(0.005)
        await starting
        assert True in seen
        await put(queue, "a")


@pytest.mark.parametrize(
    "text",
    [
        "LOADING Redis is loading the dataset in memory",
        "READONLY You can't write against a read only replica.",
        "MISCONF Redis is configured to save RDB snapshots, but it's unable to persist to disk",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "CLUSTERDOWN The cluster is down",
        "NOREPLICAS Not enough good replicas to write.",
        "BUSY Redis is busy running a script.",
        "OOM command not allowed when used memory > 'maxmemory'. script: 0123, on @user_script:1.",
    ],
)
def test_words_by_which_a_server_says_that_it_cannot_serve(text: str) -> None:
    assert isinstance(unavailable(ResponseError(text)), QueueUnavailableError)


@pytest.mark.parametrize(
    "error", [ResponseError("ERR unknown command"), ValueError("OOM"), KeyError("LOADING")]
)
def test_other_errors_are_not_called_unavailable(error: Exception) -> None:
    assert unavailable(error) is None
