"""``/v1/chat/completions`` with an engine that costs nothing: what the API and the queue add.

API, worker, server and load share the cores.
"""

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

from bench.api_load import HOST, post, running_api, send_all
from bench.measure import ROUNDS, alternate, percentile, prompts
from bench.stage import QUEUE, Stage, stage
from millpond.models.tokenization import ByteTokenizer
from millpond.settings import load_settings
from worker.assembly import simulated_config
from worker.engines.base import EngineConfig, GenerationRequest, Sampling
from worker.engines.simulated import SimulatedEngine

PATH = "/v1/chat/completions"
REQUESTS = 3_000
CONNECTIONS = 64
STREAMS = 300
MAX_TOKENS = 16
PROMPT_BYTES = 400
FREE = {
    "costs": {"prefill_s_per_token": 0.0, "decode_s_per_step": 0.0, "decode_s_per_row": 0.0},
    "tokens_per_step": MAX_TOKENS,
}
REQUESTS_A_SECOND = 600
ADDED_MS = 5.0


@contextlib.asynccontextmanager
async def running_worker(redis_url: str) -> AsyncIterator[None]:
    settings = load_settings(
        {"simulated": json.dumps(FREE)},
        redis_url=redis_url,
        queue=QUEUE,
        engine="simulated",
        log_level="warning",
    )
    process = subprocess.Popen(  # noqa: ASYNC220 - it starts once, before anything is measured
        [sys.executable, "-m", "worker"], env={**os.environ, **settings.environment()}
    )
    try:
        yield
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)


def chat(text: str, *, stream: bool) -> bytes:
    question = [{"role": "user", "content": text}]
    return post(PATH, {"messages": question, "max_tokens": MAX_TOKENS, "stream": stream})


async def first_token_ms(port: int, request: bytes) -> float:
    """Of one stream, on a connection that is open before."""
    reader, writer = await asyncio.open_connection(HOST, port)
    started_s = time.perf_counter()
    writer.write(request)
    while True:
        line = await reader.readline()
        assert line or not reader.at_eof(), "the stream ended without a token"
        if b'"content":"' in line and b'"content":""' not in line:
            break
    took_ms = (time.perf_counter() - started_s) * 1000
    await reader.readuntil(b"[DONE]")
    writer.close()
    await writer.wait_closed()
    return took_ms


def engine_alone_ms() -> float:
    """From admission to the first token, in this process."""
    preset = load_settings(engine="simulated").preset()
    config = EngineConfig("simulated", None, preset, slots=1)
    engine = SimulatedEngine(config, ByteTokenizer(), simulated_config(FREE))
    took_ms = []
    for i, text in enumerate(prompts(STREAMS, PROMPT_BYTES)):
        sampling = Sampling(max_tokens=MAX_TOKENS, seed=i)
        started_s = time.perf_counter()
        engine.admit([GenerationRequest(str(i), list(text.encode()), sampling)])
        while not any(event.token_ids for event in engine.step()):
            pass
        took_ms.append((time.perf_counter() - started_s) * 1000)
    return statistics.median(took_ms)


async def measure(on: Stage) -> None:
    texts = prompts(REQUESTS, PROMPT_BYTES)
    whole = [chat(text, stream=False) for text in texts]
    async with running_api(on.url) as port, running_worker(on.url):

        async def rate() -> float:
            started_s = time.perf_counter()
            await send_all(port, whole, 200, CONNECTIONS)
            return len(whole) / (time.perf_counter() - started_s)

        await rate()  # the first requests find cold caches
        [requests_a_second] = await alternate(rate, rounds=ROUNDS)
        firsts = [await first_token_ms(port, chat(t, stream=True)) for t in texts[:STREAMS]]
    first_ms, alone_ms = statistics.median(firsts), engine_alone_ms()
    added_ms = first_ms - alone_ms
    print(
        f"whole answers, {CONNECTIONS} connections: {requests_a_second:,.0f} requests/s "
        f"(goal {REQUESTS_A_SECOND})"
    )
    print(
        f"first token of a stream, idle worker: p50 {first_ms:.2f} ms, "
        f"p99 {percentile(firsts, 0.99):.2f} ms; the engine alone {alone_ms:.2f} ms: "
        f"{added_ms:.2f} ms added (goal {ADDED_MS:g})"
    )


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with stage(Path(folder)) as on:
            await measure(on)


if __name__ == "__main__":
    asyncio.run(main())
