"""Claim and complete through the real worker, with an engine that costs nothing."""

import asyncio
import logging
import time

import structlog

from bench import rq_peer
from bench.measure import Figure, alternate, prompts, ratio
from bench.stage import Stage
from millpond.messages import JobRequest, JobStatus
from millpond.models.presets import PRESETS
from millpond.models.tokenization import ByteTokenizer
from millpond.queue.job_queue import JobQueue
from millpond.queue.submission import NewJob
from worker.engines import build_engine
from worker.engines.base import EngineConfig
from worker.engines.simulated import SimulatedConfig, SimulatedCosts
from worker.window import WindowPolicy
from worker.worker import Worker, WorkerOptions

SLOTS = 64
PROMPT_BYTES = 400
POLL_S = 0.005


def free_worker(queue: JobQueue) -> Worker:
    """A worker like the one that `python -m worker` runs, on the simulated engine without costs."""
    tokenizer, preset = ByteTokenizer(), PRESETS["simulated"]
    config = EngineConfig("simulated", None, preset, slots=SLOTS)
    free = SimulatedConfig(costs=SimulatedCosts.free())
    return Worker(
        queue,
        lambda: build_engine(config, tokenizer, simulated=free),
        tokenizer,
        preset,
        WorkerOptions("bench", WindowPolicy.hybrid(2, SLOTS, 0.2), group_padded_tokens=1_000_000),
    )


async def _drained(stage: Stage, number: int) -> None:
    done = f"done:{JobStatus.SUCCEEDED}"
    while int(await stage.redis.hget(stage.queue.keys.counts, done) or 0) < number:
        await asyncio.sleep(POLL_S)


async def measure_draining(stage: Stage) -> list[Figure]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    texts = prompts(8_000, PROMPT_BYTES)

    async def ours(*, stream: bool) -> float:
        await stage.clear()
        jobs = [NewJob(JobRequest(prompt=p, max_tokens=1, stream=stream)) for p in texts]
        await stage.queue.submit_many(jobs)
        worker = free_worker(stage.queue)
        start = time.perf_counter()
        running = asyncio.create_task(worker.run())
        await _drained(stage, len(texts))
        seconds = time.perf_counter() - start
        worker.stop()
        assert await running
        return len(texts) / seconds

    streamed, quiet, peer = await alternate(
        lambda: ours(stream=True),
        lambda: ours(stream=False),
        lambda: stage.rq(rq_peer.drain, texts[:1_000]),
    )
    return [
        ratio("worker, zero-cost engine, claim to result", streamed, peer, at_least=20),
        Figure("  the same, stream=False", f"{quiet:,.0f}/s", "", f"{quiet / peer:.1f} times"),
    ]
