"""The background worker as a process: what RQ's own command sees of it, and that it comes back."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from millpond.local.server import RedisServer
from millpond.messages import JobRequest
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue
from millpond.settings import Settings
from millpond.webhooks.deliveries import Deliveries
from tests.acceptance.conftest import until
from tests.webhook_receiver import NO_ANSWER, answer, receiving

RQ = Path(sys.executable).parent / "rq"


@contextlib.asynccontextmanager
async def background(settings: Settings) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "background"), env={**os.environ, **settings.environment()}
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20.0) == 0


def children(process: asyncio.subprocess.Process) -> dict[int, psutil.Process]:
    return {child.pid: child for child in psutil.Process(process.pid).children()}


async def test_rq_sees_it_and_a_killed_one_comes_back(redis_server: RedisServer) -> None:
    settings = Settings(redis_url=redis_server.url, engine="simulated", queue="coarse")

    def states() -> list[tuple[str, str]]:
        """Of the workers, with their queues; the webhooks' has its job all the time."""
        command = [RQ, "info", "--url", redis_server.url, "--raw", "--only-workers"]
        command += ["coarse-batches", "coarse-webhooks"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return sorted(re.findall(r"(idle|busy) (coarse-\w+)\.", told))

    async with background(settings) as process:
        expected = [("busy", "coarse-webhooks"), ("idle", "coarse-batches")]
        await until(lambda: states() == expected, 20.0, "rq info shows the workers")
        first = children(process)
        first[min(first)].kill()
        await until(
            lambda: len(now := children(process)) == len(first) and now.keys() != first.keys(),
            20.0,
            "it is started again",
        )


async def test_a_webhook_outlives_the_process_that_was_sending_it(
    redis_server: RedisServer,
) -> None:
    settings = Settings(
        redis_url=redis_server.url, engine="simulated", webhook_allow=("127.0.0.1",)
    )
    redis = connect(redis_server.url)
    queue = JobQueue(redis, settings.queue)
    deliveries = Deliveries(redis, queue.keys)
    async with receiving(NO_ANSWER, answer(204)) as receiver, background(settings) as process:
        await queue.submit(JobRequest(prompt="a", webhook_url=receiver.url()), id="j")
        await queue.cancel("j")
        await until(lambda: receiver.received, 20.0, "it is tried")
        for child in children(process).values():
            child.kill()
        key = queue.keys["deliveries"]
        await redis.zadd(key, {b"url/j": 1})  # as if its lease were over

        async def delivered() -> bool:
            return await deliveries.pending() == 0

        await until(delivered, 20.0, "it is sent by the next process")
    await redis.aclose()

    first, second = (got.headers["webhook-id"] for got in receiver.received)
    assert first == second
