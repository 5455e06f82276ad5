"""Where the figures are measured: one embedded server, as `millpond up` starts it, and RQ's process."""

import asyncio
import contextlib
import multiprocessing
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from redis.asyncio import Redis

from millpond.local.server import RedisServer, ServerOptions, bundled_server, free_port
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue, QueueOptions

Ts = TypeVarTuple("Ts")
T = TypeVar("T")

QUEUE = "bench"
OPTIONS = QueueOptions(max_depth=2_000_000)


@dataclass(frozen=True, slots=True)
class Stage:
    url: str
    redis: Redis
    queue: JobQueue
    rq_process: ProcessPoolExecutor
    server_pid: int

    async def clear(self) -> None:
        """Start each measurement from an empty server, which frees nothing behind its back."""
        await self.redis.execute_command("FLUSHALL", "SYNC")  # type: ignore[no-untyped-call]

    async def rq(self, call: Callable[[str, *Ts], T], *args: *Ts) -> T:
        """Run one of `bench.rq_peer`'s functions against the same server, emptied before."""
        await self.clear()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.rq_process, call, self.url, *args)


@contextlib.asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Stage]:
    """A server in ``folder`` on a free port; RQ gets a process of its own, in its main thread."""
    spawn = multiprocessing.get_context("spawn")
    options = ServerOptions(folder, free_port())
    async with RedisServer(options, bundled_server()) as server:
        redis = connect(server.url)
        with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as rq_process:
            assert server.pid is not None
            queue = JobQueue(redis, QUEUE, OPTIONS)
            yield Stage(server.url, redis, queue, rq_process, server.pid)
        await redis.aclose()
