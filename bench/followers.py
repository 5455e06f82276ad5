"""Many clients that follow jobs over SSE through one API process: what they cost while nothing happens.

``python -m bench.followers [NUMBER]``. Each follows a job of its own. The server's cost for
200,000 is the measured one, multiplied: so many sockets do not fit one machine.
"""

import asyncio
import os
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

import psutil
from redis.asyncio import Redis

from bench.api_load import HOST, running_api
from bench.stage import Stage, stage
from millpond.messages import FinishReason, JobRequest, JobResult, JobStatus, Usage
from millpond.queue.submission import NewJob

FOLLOWERS = 10_000
CONNECTING_AT_ONCE = 500
IDLE_S = 30.0
GOAL = 200_000
PLENTY = 10**9
FINISHED = b"event: finished"


async def follow(port: int, id: str, turn: asyncio.Semaphore) -> asyncio.StreamReader | str:
    """The open stream, or the status line of a refusal."""
    # Several source addresses: one has too few ports.
    source = f"127.0.0.{1 + hash(id) % 100}"
    async with turn:
        reader, writer = await asyncio.open_connection(HOST, port, local_addr=(source, 0))
        writer.write(f"GET /v1/jobs/{id}/events HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
    STREAMS.append(writer)
    return reader if b" 200 " in head.split(b"\r\n")[0] else head.split(b"\r\n")[0].decode()


STREAMS: list[asyncio.StreamWriter] = []


async def submitted(on: Stage, number: int) -> list[str]:
    jobs = [NewJob(JobRequest(prompt="hi", max_tokens=4)) for _ in range(number)]
    ids = []
    for i in range(0, number, 1_000):
        for answer in await on.queue.submit_many(jobs[i : i + 1_000]):
            assert not isinstance(answer, Exception), answer
            ids.append(answer.id)
    return ids


async def end_all(on: Stage) -> None:
    while True:
        claim = await on.queue.claim("bench", 500, budget_tokens=PLENTY, capacity_tokens=PLENTY)
        if not claim.jobs:
            return
        results = [
            JobResult(
                id=job.id,
                status=JobStatus.SUCCEEDED,
                finish_reason=FinishReason.STOP,
                text="done",
                usage=Usage(prompt_tokens=2, completion_tokens=2),
            )
            for job in claim.jobs
        ]
        fences = [job.fence for job in claim.jobs]
        await on.queue.complete(list(zip(fences, results, strict=True)))


async def cpu_share(pids: list[int], seconds: float) -> list[float]:
    def used() -> list[float]:
        times = [psutil.Process(pid).cpu_times() for pid in pids]
        return [t.user + t.system for t in times]

    before, started_s = used(), time.perf_counter()
    await asyncio.sleep(seconds)
    passed_s = time.perf_counter() - started_s
    return [(b - a) / passed_s for a, b in zip(before, used(), strict=True)]


async def server_pid(redis: Redis) -> int:
    return int((await redis.info("server"))["process_id"])


async def measure(on: Stage, number: int) -> None:
    async with running_api(on.url) as port:
        [api] = [c for c in psutil.Process().children() if "-m api" in " ".join(c.cmdline())]
        pids = [await server_pid(on.redis), api.pid]
        base, _ = await cpu_share(pids, 5.0)
        ids = await submitted(on, number)
        turn = asyncio.Semaphore(CONNECTING_AT_ONCE)
        started_s = time.perf_counter()
        opened = await asyncio.gather(*(follow(port, id, turn) for id in ids))
        connected_s = time.perf_counter() - started_s
        refusals = [stream for stream in opened if isinstance(stream, str)]
        streams = [stream for stream in opened if not isinstance(stream, str)]
        clients = await on.redis.client_list()
        own = os.getpid()
        of_api = [c for c in clients if not re.search(rf"\b{own}\b", c.get("name", ""))]
        server, process = await cpu_share(pids, IDLE_S)
        print(
            f"{len(streams)} followers of one API process, {len(refusals)} refused, connected in "
            f"{connected_s:.1f} s; {len(of_api) - 1} Redis connections, the bench's own included"
        )
        print(
            f"idle: the server used {server:.2%} of a core ({base:.2%} without followers), the "
            f"API {process:.1%}; {GOAL:,} would use {base + (server - base) * GOAL / number:.1%}"
        )
        started_s = time.perf_counter()
        ended = [asyncio.create_task(stream.readuntil(FINISHED)) for stream in streams]
        await end_all(on)
        await asyncio.gather(*ended)
        print(f"all ended, and told so, in {time.perf_counter() - started_s:.1f} s")
        for writer in STREAMS:
            writer.close()


async def main() -> None:
    number = int(sys.argv[1]) if len(sys.argv) > 1 else FOLLOWERS
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4 * number), most))
    with tempfile.TemporaryDirectory() as folder:
        async with stage(Path(folder)) as on:
            await measure(on, number)


if __name__ == "__main__":
    asyncio.run(main())
