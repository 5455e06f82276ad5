"""What it costs to keep tokens: ``python -m bench.kept_tokens [ENGINE]``.

One worker with the simulated engine: ``free``, which costs nothing itself, so that all that is measured is
the worker and the server, or ``usual``, whose steps take as long as those of a small model. Jobs without a
stream and with one, with and without tokens kept, in turns; tokens a second, and bytes that the server was
sent for each token.
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from millpond.local.server import RedisServer, ServerOptions, bundled_server, free_port
from millpond.messages import JobRequest
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from millpond.queue.submission import NewJob
from millpond.queue.subscriptions import Subscriptions
from millpond.settings import load_settings

ROUNDS = 5
JOBS = 200
TOKENS = 256
EVERY_TOKENS = (0, 32)
ENGINES = {
    "free": {"costs": {"decode_s_per_step": 0.0, "decode_s_per_row": 0.0}},
    "usual": {},
}


async def measure(url: str, engine: str, every_tokens: int, *, stream: bool) -> tuple[float, float]:
    """Tokens a second, and bytes to the server for each."""
    settings = load_settings(
        redis_url=url,
        queue="kept",
        engine="simulated",
        slots=64,
        checkpoint_tokens=every_tokens,
        log_level="error",
        simulated=ENGINES[engine],
    )
    redis = connect(url, "kept")
    await redis.flushall()
    queue, subscriptions = JobQueue(redis, "kept"), Subscriptions(redis)
    results = Results(redis, "kept", subscriptions)
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "worker"), env={**os.environ, **settings.environment()}
    )
    try:
        while not any(w.state.state == "ready" for w in (await results.queue_state()).workers):
            await asyncio.sleep(0.05)
        requests = [
            JobRequest(prompt=f"job {i}", max_tokens=TOKENS, ignore_eos=True, stream=stream)
            for i in range(JOBS)
        ]
        sent = (await redis.info("stats"))["total_net_input_bytes"]
        began_s = time.monotonic()
        await queue.submit_many([NewJob(request, tokens=TOKENS) for request in requests])
        while (state := await results.queue_state()).depth or state.running:
            await asyncio.sleep(0.02)
        took_s = time.monotonic() - began_s
        sent = (await redis.info("stats"))["total_net_input_bytes"] - sent
    finally:
        worker.terminate()
        await worker.wait()
        await subscriptions.close()
        await redis.aclose()
    return JOBS * TOKENS / took_s, sent / (JOBS * TOKENS)


async def main(engine: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = ServerOptions(Path(folder), free_port())
        async with RedisServer(options, bundled_server()) as server:
            for stream in (False, True):
                rates: dict[int, list[float]] = {every: [] for every in EVERY_TOKENS}
                sizes: dict[int, float] = {}
                for _ in range(ROUNDS):
                    for every in EVERY_TOKENS:
                        rate, sizes[every] = await measure(server.url, engine, every, stream=stream)
                        rates[every].append(rate)
                ratios = [b / a for a, b in zip(*rates.values(), strict=True)]
                print(f"{'streamed' if stream else 'not streamed'}: ", end="")
                for every in EVERY_TOKENS:
                    rate = statistics.median(rates[every])
                    print(f"every {every}: {rate:,.0f} tok/s, {sizes[every]:.1f} B/token; ", end="")
                print(
                    f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
                )


if __name__ == "__main__":
    asyncio.run(main(*(sys.argv[1:] or ["free"])))
