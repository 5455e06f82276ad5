"""The background worker as a process: what RQ's own command sees of it, and that it comes back."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from millpond.local.server import RedisServer
from millpond.settings import Settings
from tests.acceptance.conftest import until

RQ = Path(sys.executable).parent / "rq"


async def test_rq_sees_it_and_a_killed_one_comes_back(redis_server: RedisServer) -> None:
    settings = Settings(redis_url=redis_server.url, engine="simulated", queue="coarse")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "background"), env={**os.environ, **settings.environment()}
    )

    def info() -> str:
        command = [RQ, "info", "--url", redis_server.url, "--raw", "--only-workers"]
        command += ["coarse-batches", "coarse-webhooks"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def workers() -> set[int]:
        return {child.pid for child in psutil.Process(process.pid).children()}

    def states() -> list[tuple[str, str]]:
        """Of the workers, with their queues; the webhooks' has its job all the time."""
        return sorted(re.findall(r"(idle|busy) (coarse-\w+)\.", info()))

    try:
        expected = [("busy", "coarse-webhooks"), ("idle", "coarse-batches")]
        await until(lambda: states() == expected, 20.0, "rq info shows the workers")
        first = workers()
        psutil.Process(min(first)).kill()
        await until(
            lambda: len(workers()) == len(first) and workers() != first, 20.0, "it is started again"
        )
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20.0) == 0
