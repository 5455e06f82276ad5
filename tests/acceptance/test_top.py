"""``millpond top`` on a real terminal."""

import asyncio
import os
import pty
import termios
from pathlib import Path

from millpond.local.server import RedisServer
from millpond.messages import JobRequest
from millpond.messages.worker_state import WorkerPhase, WorkerState
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue
from tests.acceptance.conftest import MILLPOND, run_command, until


async def test_it_shows_what_ends_pauses_and_quits(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    redis = connect(redis_server.url)
    queue = JobQueue(redis, "default")
    await queue.beat("host-1-a", WorkerState(state=WorkerPhase.READY, model="m", slots=4, rows=2))
    job = await queue.submit(JobRequest(prompt="hi"))
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = await asyncio.create_subprocess_exec(
        *(MILLPOND, "top", "--redis-url", redis_server.url),
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        env={**os.environ, "COLUMNS": "120", "LINES": "30", "TERM": "xterm"},
        cwd=tmp_path,
    )
    seen = bytearray()
    asyncio.get_running_loop().add_reader(ours, lambda: seen.extend(os.read(ours, 65536)))
    try:
        await until(lambda: b"host-1-a" in seen, 20, "the worker is shown")
        await queue.cancel(job.id)
        await until(lambda: job.id.encode() in seen, 20, "the ending is shown")
        os.write(ours, b"p")
        await until(lambda: b"PAUSED" in seen, 5, "it has paused")
        os.write(ours, b"q")
        assert await asyncio.wait_for(process.wait(), 10) == 0, bytes(seen[-2000:])
        assert termios.tcgetattr(theirs) == before, "the terminal is as it was"
    finally:
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)
        os.close(theirs)
        await redis.aclose()
        if process.returncode is None:
            process.kill()
            await process.wait()

    status, out, _ = await run_command("top", "--redis-url", redis_server.url, cwd=tmp_path)
    assert (status, "host-1-a" in out) == (0, True), "one picture where there is no terminal"
