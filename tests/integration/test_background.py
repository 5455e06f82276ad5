"""The background worker as a process: what RQ's own command sees of it, and that it comes back."""

import asyncio
import os
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
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def rq_worker() -> psutil.Process | None:
        children = psutil.Process(process.pid).children()
        return children[0] if children else None

    try:
        await until(lambda: "coarse-batches" in info(), 20.0, "rq info shows the worker")
        [line] = [line for line in info().splitlines() if line.startswith("worker")]
        assert "idle" in line
        first = rq_worker()
        assert first is not None
        first.kill()
        await until(
            lambda: (now := rq_worker()) is not None and now.pid != first.pid,
            20.0,
            "it is started again",
        )
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 20.0) == 0
