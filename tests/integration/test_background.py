"""The background worker as a process: what RQ's own command sees of it, and that it comes back."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from redis.asyncio import Redis

from millpond.local.server import RedisServer
from millpond.messages import JobRequest
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue
from millpond.settings import Settings
from millpond.webhooks.deliveries import Deliveries
from tests.acceptance.conftest import until
from tests.integration.conftest import StartApi
from tests.integration.openai_client.conftest import client_of, running_worker
from tests.integration.openai_client.test_batches import CHAT, request
from tests.integration.test_redis_security import USERS, url_of
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


async def test_it_needs_no_more_rights_than_its_user_has(
    redis_server: RedisServer, start_api: StartApi, tmp_path: Path
) -> None:
    """A batch from its file to its end, with the API's and the background worker's own users."""
    async with Redis.from_url(redis_server.url) as root:
        for name, rules in USERS.items():
            await root.execute_command("ACL", "SETUSER", name, *rules)
    settings = Settings(
        redis_url=url_of(redis_server, "background"), engine="simulated", data_dir=tmp_path
    )
    async with background(settings):
        url = url_of(redis_server, "api")
        async with start_api(url, data_dir=tmp_path) as api, client_of(api) as client:
            file = await client.files.create(file=("in.jsonl", request("a")), purpose="batch")
            asked: dict[str, Any] = {"endpoint": CHAT, "completion_window": "1h"}
            made = await client.batches.create(input_file_id=file.id, **asked)
            other = await client.batches.create(input_file_id=file.id, **asked)
            await client.batches.cancel(other.id)

            async def has_ended(id: str, status: str) -> bool:
                return (await client.batches.retrieve(id)).status == status

            root = connect(redis_server.url)
            async with running_worker(replace(api, queue=JobQueue(root, "default"))):
                await until(lambda: has_ended(made.id, "completed"), 30.0, "the batch ends")
                await until(lambda: has_ended(other.id, "cancelled"), 30.0, "the other one, too")
            await root.aclose()
            await client.files.delete(file.id)

            def objects() -> set[str]:
                return {path.name.split("-")[0] for path in (tmp_path / "files").iterdir()}

            await until(lambda: objects() == {made.id}, 30.0, "what is not needed is removed")
