"""A planned fail-over: the replica is promoted, the old primary follows it, and the name leads to the new
one. Connections that are open stay with the old one, which goes on answering reads.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from millpond.errors import QueueUnavailableError
from millpond.local.server import RedisServer, ServerOptions, free_port
from millpond.messages import JobRequest, JobStatus
from millpond.messages.worker_state import WorkerPhase
from millpond.queue.connection import MAX_CONNECTIONS, connect
from millpond.queue.job_queue import JobQueue, QueueOptions
from millpond.queue.results import Results
from millpond.queue.subscriptions import Subscriptions
from tests.chaos.proxy import Proxy
from tests.conftest import bundled_server
from tests.contract.jobs import a_worker, put, until
from tests.integration.conftest import StartApi
from tests.integration.test_worker import Bench, is_running


@dataclass
class Pair:
    """``proxy`` stands for the name by which everybody connects."""

    proxy: Proxy
    old: RedisServer
    new: RedisServer

    async def fail_over(self) -> None:
        async with Redis.from_url(self.old.url) as old, Redis.from_url(self.new.url) as new:
            await new.replicaof("NO", "ONE")
            self.proxy.target_port = self.new.options.port
            await old.replicaof("127.0.0.1", str(self.new.options.port))


@pytest.fixture
async def pair(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Pair]:
    options = ServerOptions(data_dir=tmp_path / "replica", port=free_port())
    async with (
        RedisServer(options, bundled_server()) as replica,
        Proxy(redis_server.options.port) as proxy,
        Redis.from_url(redis_server.url) as old,
        Redis.from_url(replica.url) as new,
    ):
        for server in (old, new):
            await server.config_set("repl-diskless-sync-delay", 0)
        await new.replicaof("127.0.0.1", str(redis_server.options.port))

        async def follows() -> bool:
            await old.set("probe", "1")
            return await new.get("probe") == b"1"

        await until(follows)
        await old.delete("probe")
        yield Pair(proxy, redis_server, replica)


async def test_every_connection_finds_the_new_primary(pair: Pair) -> None:
    """Each of 64 connections had to fail once, and was kept: submits were refused for minutes."""
    redis = connect(pair.proxy.url)
    queue = JobQueue(redis, "test")
    await asyncio.gather(*(put(queue, f"before-{i}") for i in range(2 * MAX_CONNECTIONS)))
    await pair.fail_over()
    await put(queue, "first")
    async with Redis.from_url(pair.new.url) as new:
        await new.hset(queue.keys.job("first"), "priority", "batch")
        seen = await asyncio.gather(
            *(redis.hget(queue.keys.job("first"), "priority") for _ in range(2 * MAX_CONNECTIONS))
        )
        assert set(seen) == {b"batch"}, "reads are of the new primary, too"
    await asyncio.gather(*(put(queue, f"after-{i}") for i in range(2 * MAX_CONNECTIONS)))
    assert await queue.depth() == 4 * MAX_CONNECTIONS + 1
    await redis.aclose()


async def test_the_api_goes_on_and_says_so(pair: Pair, start_api: StartApi) -> None:
    async with start_api(pair.proxy.url) as api:
        await api.queue.beat("w", a_worker())
        posts = [api.http.post("/v1/jobs", json={"prompt": f"{i}"}) for i in range(40)]
        assert {answer.status_code for answer in await asyncio.gather(*posts)} == {202}
        await pair.fail_over()
        posts = [api.http.post("/v1/jobs", json={"prompt": f"new {i}"}) for i in range(40)]
        assert {answer.status_code for answer in await asyncio.gather(*posts)} == {202}
        api.services.readiness._looked_s = -1.0
        ready = await api.http.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (200, True), ready.text


async def test_an_api_on_a_replica_is_not_ready(pair: Pair, start_api: StartApi) -> None:
    """It said that it was, while it refused every job."""
    async with start_api(pair.new.url) as api:
        async with Redis.from_url(pair.old.url) as old:
            await JobQueue(old, "default").beat("w", a_worker())

        async def replicated() -> bool:
            return len((await api.services.home.results.queue_state()).workers) == 1

        await until(replicated)
        ready = await api.http.get("/readyz")
        assert (ready.status_code, ready.json()["redis"]) == (503, False)
        assert "a replica" in ready.json()["reason"]
        refused = await api.http.post("/v1/jobs", json={"prompt": "a"})
        assert refused.status_code == 503


@pytest.fixture
async def bench(pair: Pair) -> AsyncIterator[Bench]:
    redis = connect(pair.proxy.url)
    subscriptions = Subscriptions(redis)
    results = Results(redis, "test", subscriptions)
    yield Bench(pair.old, JobQueue(redis, "test", QueueOptions(lease_s=5.0)), results)
    await subscriptions.close()
    await redis.aclose()


async def test_a_worker_and_those_who_wait_go_on(pair: Pair, bench: Bench) -> None:
    """Its BLPOP was answered UNBLOCKED, on which its listener ended in silence."""
    async with bench.worker(options={"heartbeat_s": 0.5}) as (worker, task):
        running = await bench.submit(max_tokens=2_000, ignore_eos=True)
        await until(lambda: is_running(bench, running))
        await pair.fail_over()
        during = await bench.submit("during", max_tokens=5)
        assert await bench.ended(during) is JobStatus.SUCCEEDED
        assert await bench.ended(running) is JobStatus.SUCCEEDED
        after = await bench.submit("after", max_tokens=5)
        assert await bench.ended(after) is JobStatus.SUCCEEDED
        assert worker.ready
        assert not task.done()


@pytest.mark.parametrize("command", ["UNBLOCK", "KILL"])
async def test_a_listener_that_is_unblocked_or_killed_goes_on(
    bench: Bench, pair: Pair, command: str
) -> None:
    async with bench.worker(), Redis.from_url(pair.old.url) as root:

        async def blocked() -> Any:
            return [c["id"] for c in await root.client_list() if c["cmd"] == "blpop"]

        for _ in range(3):
            for id in await until(blocked):
                if command == "UNBLOCK":
                    await root.execute_command("CLIENT", "UNBLOCK", id, "ERROR")
                else:
                    await root.execute_command("CLIENT", "KILL", "ID", id)
            job = await bench.submit("next", max_tokens=3)
            async with asyncio.timeout(
                0.8
            ):  # an idle worker without its listener looks once a second
                assert await bench.ended(job) is JobStatus.SUCCEEDED


@pytest.mark.parametrize(
    ("phase", "reason"),
    [(None, "no worker is alive"), (WorkerPhase.HUNG, "the engine of every worker hangs")],
)
async def test_an_api_without_a_worker_that_works_is_not_ready(
    redis_server: RedisServer, start_api: StartApi, phase: WorkerPhase | None, reason: str
) -> None:
    async with start_api(redis_server.url) as api:
        if phase is not None:
            await api.queue.beat("w", a_worker(state=phase))
        ready = await api.http.get("/readyz")
        assert (ready.status_code, ready.json()["reason"]) == (503, reason)
        await api.queue.beat("w", a_worker(state=WorkerPhase.LOADING))

        async def is_ready() -> bool:
            return (await api.http.get("/readyz")).status_code == 200

        await until(is_ready)
        await api.queue.submit(JobRequest(prompt="accepted"))


async def test_many_who_ask_whether_it_is_ready_ask_redis_once(
    redis_server: RedisServer, start_api: StartApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start_api(redis_server.url) as api:
        calls = 0
        try_write = api.services.home.queue.try_write

        async def counted() -> None:
            nonlocal calls
            calls += 1
            await try_write()

        monkeypatch.setattr(api.services.home.queue, "try_write", counted)
        answers = await asyncio.gather(*(api.http.get("/readyz") for _ in range(50)))
        assert {answer.status_code for answer in answers} == {503}
        assert calls == 1


async def test_a_full_server_takes_no_new_jobs(redis_server: RedisServer) -> None:
    redis = connect(redis_server.url)
    queue = JobQueue(redis, "test")
    await queue.try_write()
    await redis.config_set("maxmemory", "1mb")
    with pytest.raises(QueueUnavailableError):
        await queue.try_write()
    await redis.aclose()
