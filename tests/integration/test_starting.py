"""Processes that must not start say why and end at once; those that may, start."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from api import watch
from api.watch import watch_queue
from millpond.local.server import RedisServer
from millpond.queue.connection import connect
from millpond.queue.keys import Keys
from millpond.queue.membership import QUEUE_VERSION
from millpond.queue.results import Results
from millpond.queue.subscriptions import Subscriptions
from millpond.settings import Settings
from tests.contract.jobs import until

LIMIT_S = 30.0
PYTHON = sys.executable
MILLPOND = str(Path(sys.executable).parent / "millpond")


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    redis = connect(redis_server.url)
    yield redis
    await redis.aclose()


def settings_of(server: RedisServer, **changes: Any) -> Settings:
    fields = {"redis_url": server.url, "queue": "starting", "engine": "simulated", "port": 0}
    return Settings(**fields, **changes)


async def run(settings: Settings, *command: str) -> tuple[int, str]:
    """What it exits with, and what it says."""
    process = await start(settings, *command)
    async with asyncio.timeout(LIMIT_S):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, " ".join(output.decode().split())


async def start(settings: Settings, *command: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        env={**os.environ, **settings.environment()},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


@contextlib.asynccontextmanager
async def ready_worker(redis: Redis, settings: Settings) -> AsyncIterator[str]:
    """Its id."""
    subscriptions = Subscriptions(redis)
    results = Results(redis, settings.queue, subscriptions)
    process = await start(settings, PYTHON, "-m", "worker")

    async def ready() -> str | None:
        return next((w.id for w in (await results.queue_state()).workers if w.ready), None)

    try:
        yield await until(ready, LIMIT_S)
    finally:
        process.terminate()
        await process.wait()
        await subscriptions.close()


@pytest.mark.parametrize("module", ["worker", "api"])
async def test_a_server_that_evicts_is_refused(
    redis_server: RedisServer, redis: Redis, module: str
) -> None:
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    status, said = await run(settings_of(redis_server), PYTHON, "-m", module)
    assert status == 1
    assert f"millpond {module}: the server's maxmemory-policy is allkeys-lru" in said
    assert "Traceback" not in said


async def test_millpond_up_says_so_before_it_starts_anything(
    redis_server: RedisServer, redis: Redis, tmp_path: Path
) -> None:
    await redis.config_set("maxmemory-policy", "volatile-lru")
    given = ("--redis-url", redis_server.url, "--data", str(tmp_path / "data"))
    status, said = await run(settings_of(redis_server), MILLPOND, "up", *given)
    assert status == 2
    assert "maxmemory-policy is volatile-lru" in said.replace("│", "")
    assert not list((tmp_path / "data").glob("worker.log"))


async def test_a_setting_lets_it_run_all_the_same(redis_server: RedisServer, redis: Redis) -> None:
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    async with ready_worker(redis, settings_of(redis_server, allow_eviction=True)) as worker:
        assert worker


async def test_a_worker_with_another_model_is_refused(
    redis_server: RedisServer, redis: Redis
) -> None:
    settings = settings_of(redis_server)
    async with ready_worker(redis, settings):
        other = settings.model_copy(update={"adapters": {"sql": "somewhere"}})
        status, said = await run(other, PYTHON, "-m", "worker")
        assert status == 1
        assert "millpond worker: the queue starting serves the model simulated" in said
        assert "its preset differs" in said


@pytest.mark.parametrize("module", ["worker", "api"])
async def test_a_queue_of_a_newer_version_is_refused(
    redis_server: RedisServer, redis: Redis, module: str
) -> None:
    keys = Keys("starting")
    await redis.hset(keys["about"], "version", QUEUE_VERSION + 1)
    await redis.hset(keys.counts, "running", 1)
    status, said = await run(settings_of(redis_server), PYTHON, "-m", module)
    assert status == 1
    assert f"is in use in version {QUEUE_VERSION + 1}" in said


async def test_a_running_api_stops_when_the_queue_is_taken_to_another_version(
    redis_server: RedisServer, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[int] = []
    monkeypatch.setattr(watch.signal, "raise_signal", raised.append)
    settings = settings_of(redis_server)
    watching = asyncio.create_task(watch_queue(redis, settings, every_s=0.01))

    async def has_looked() -> bool:
        return await redis.hget(Keys("starting")["about"], "version") is not None

    await until(has_looked)
    assert not raised
    await redis.hset(Keys("starting")["about"], "version", QUEUE_VERSION + 1)
    async with asyncio.timeout(LIMIT_S):
        await watching
    assert raised == [watch.signal.SIGTERM]
