"""``POST /v1/jobs`` over loopback: one API process, and this process as the load, on the same cores."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson

from bench.measure import ROUNDS, Figure, alternate, prompts
from bench.stage import OPTIONS, QUEUE, Stage
from millpond.local.server import free_port
from millpond.settings import load_settings

HOST = "127.0.0.1"
CONNECTIONS = 32
POSTS = 3_000
PROMPT_BYTES = 400
READY_TIMEOUT_S = 30.0
AT_LEAST = 800


@contextlib.asynccontextmanager
async def running_api(redis_url: str, processes: int = 1) -> AsyncIterator[int]:
    """Start ``python -m api`` with the simulated engine's tokenizer; its port."""
    port = free_port()
    settings = load_settings(
        redis_url=redis_url,
        queue=QUEUE,
        engine="simulated",
        port=port,
        api_processes=processes,
        max_depth=OPTIONS.max_depth,
        log_level="warning",
    )
    process = subprocess.Popen(  # noqa: ASYNC220 - it starts once, before anything is measured
        [sys.executable, "-m", "api"], env={**os.environ, **settings.environment()}
    )
    try:
        await _until_it_listens(port, process)
        yield port
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


async def _until_it_listens(port: int, process: "subprocess.Popen[bytes]") -> None:
    async with asyncio.timeout(READY_TIMEOUT_S):
        while True:
            assert process.poll() is None, "the API process has ended"
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(HOST, port)
                writer.close()
                return
            await asyncio.sleep(0.05)


def post(path: str, fields: dict[str, Any]) -> bytes:
    body = orjson.dumps(fields)
    head = f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def send_all(port: int, requests: list[bytes], status: int, connections: int) -> None:
    """Each connection sends its next request when its last was answered with this status."""
    waiting = iter(requests)
    answered = b"HTTP/1.1 %d " % status

    async def send() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        for request in waiting:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            [length] = [
                int(line.partition(b":")[2])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            ]
            body = await reader.readexactly(length)
            assert head.startswith(answered), (head, body)
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(send() for _ in range(connections)))


async def measure_api(stage: Stage) -> list[Figure]:
    requests = [
        post("/v1/jobs", {"prompt": text, "max_tokens": 16})
        for text in prompts(POSTS, PROMPT_BYTES)
    ]
    await stage.clear()
    async with running_api(stage.url) as one, running_api(stage.url, processes=2) as two:

        async def accepted(port: int) -> float:
            before = await stage.queue.depth()
            start = time.perf_counter()
            await send_all(port, requests, 202, CONNECTIONS)
            seconds = time.perf_counter() - start
            assert await stage.queue.depth() - before == POSTS
            return POSTS / seconds

        for port in (one, two):
            await accepted(port)  # the first requests find cold caches
        rate, of_two = await alternate(lambda: accepted(one), lambda: accepted(two), rounds=ROUNDS)
    return [
        Figure(
            f"POST /v1/jobs, {CONNECTIONS} connections",
            f"{rate:,.0f} accepted/s",
            "",
            f"{rate:,.0f}/s",
            f"≥ {AT_LEAST:,}/s",
            rate >= AT_LEAST,
        ),
        Figure(
            "the same with two API processes",
            f"{of_two:,.0f} accepted/s",
            f"one process {rate:,.0f}/s",
            f"{of_two / rate:.2f} times",
            "≥ 1 times on two cores",
            of_two >= rate,
        ),
    ]
