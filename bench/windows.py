"""``python -m bench.windows``: what each window policy adds to a job's wait, and what it gains.

A simulated engine that takes as long as SmolLM2-135M in bfloat16 on two cores does real waiting, so
the three policies run beside each other on one server, each with its queue and its worker, under the
same arrivals.
"""

import asyncio
import logging
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from rich.console import Console
from rich.table import Table

from bench.measure import percentile
from millpond.local.server import RedisServer, ServerOptions, bundled_server, free_port
from millpond.messages import JobRequest, JobResult
from millpond.models.presets import PRESETS
from millpond.models.tokenization import ByteTokenizer
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from millpond.queue.submission import NewJob
from millpond.queue.subscriptions import Subscriptions
from worker.engines import build_engine
from worker.engines.base import EngineConfig
from worker.engines.simulated import SimulatedConfig, SimulatedCosts
from worker.window import WindowPolicy
from worker.worker import Worker, WorkerOptions

SLOTS = 64
# As measured, see docs/performance.md.
COSTS = SimulatedCosts(
    prefill_s_per_token=0.26e-3, decode_s_per_step=9e-3, decode_s_per_row=0.33e-3
)
PROMPT_TOKENS = 138
MEAN_OUTPUT_TOKENS = 82
POLICIES = {
    "hybrid, 2 jobs or 200 ms": WindowPolicy.hybrid(2, SLOTS, 0.2),
    "sliding, 50 ms": WindowPolicy.sliding(SLOTS, 0.05),
    "at once": WindowPolicy.at_once(SLOTS),
}


@dataclass(frozen=True, slots=True)
class Load:
    """``jobs`` arrivals at random, ``per_s`` on average; 0: all at once."""

    name: str
    per_s: float
    jobs: int

    def gaps_s(self, chance: random.Random) -> list[float]:
        return [chance.expovariate(self.per_s) if self.per_s else 0.0 for _ in range(self.jobs)]


LOADS = (Load("light, 1 job/s", 1.0, 60), Load("medium, 7 jobs/s", 7.0, 300), Load("deep", 0, 400))


@dataclass(frozen=True, slots=True)
class Outcome:
    """Milliseconds from acceptance to the claim, and to the first token; output tokens a second."""

    waits_ms: Sequence[float]
    first_token_ms: Sequence[float]
    tokens_per_s: float


async def run(url: str, name: str, policy: WindowPolicy, load: Load) -> Outcome:
    redis = connect(url)
    queue = JobQueue(redis, name)
    preset, tokenizer = PRESETS["simulated"], ByteTokenizer()
    config = EngineConfig("simulated", None, preset, slots=SLOTS)
    worker = Worker(
        queue,
        lambda: build_engine(config, tokenizer, simulated=SimulatedConfig(costs=COSTS)),
        tokenizer,
        preset,
        WorkerOptions(name, policy),
    )
    running = asyncio.create_task(worker.run())
    while not worker.ready:
        await asyncio.sleep(0.01)
    subscriptions = Subscriptions(redis)
    results = await _answers(queue, Results(redis, name, subscriptions), load)
    await subscriptions.close()
    worker.stop()
    assert await running
    await redis.aclose()
    return _outcome(results)


async def _answers(queue: JobQueue, reader: Results, load: Load) -> list[JobResult]:
    """Submit at the load's pace, and wait for all results."""
    chance = random.Random(7)
    ids = []
    jobs = [NewJob(_request(i, chance)) for i in range(load.jobs)]
    if not load.per_s:
        ids = [job.id for job in await queue.submit_many(jobs) if not isinstance(job, Exception)]
    else:
        for gap_s, job in zip(load.gaps_s(chance), jobs, strict=True):
            await asyncio.sleep(gap_s)
            ids.append((await queue.submit(job.request)).id)
    views = await asyncio.gather(*(reader.wait(id, 300.0) for id in ids))
    return [view.result for view in views if view.result is not None]


def _request(number: int, chance: random.Random) -> JobRequest:
    """138 tokens, and 8 to 256 tokens to write, 82 on average."""
    text = f"{number:05d} ".ljust(PROMPT_TOKENS, "x")
    tokens = min(256, 8 + int(chance.expovariate(1 / (MEAN_OUTPUT_TOKENS - 4))))
    return JobRequest(
        token_ids=ByteTokenizer().encode(text), max_tokens=tokens, ignore_eos=True, stream=False
    )


def _outcome(results: Sequence[JobResult]) -> Outcome:
    receipts = [r.receipt for r in results if r.receipt is not None]
    waits = [float(r.queue_wait_ms) for r in receipts]
    first = [r.queue_wait_ms + r.first_token_ms for r in receipts]
    began_ms = min(r.claimed_ms - r.queue_wait_ms for r in receipts)
    ended_ms = max(r.finished_ms or 0.0 for r in results)
    tokens = sum(r.usage.completion_tokens for r in results if r.usage is not None)
    return Outcome(waits, first, 1000 * tokens / (ended_ms - began_ms))


async def measure() -> Table:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    table = Table("load", "window", "wait for the claim p50, p95", "first token p50, p95", "tok/s")
    with tempfile.TemporaryDirectory(prefix="millpond-bench-") as folder:
        options = ServerOptions(Path(folder), free_port())
        async with RedisServer(options, bundled_server()) as server:
            for load in LOADS:
                names = [f"q{i}" for i in range(len(POLICIES))]
                runs = (
                    run(server.url, f"{name}-{load.jobs}", policy, load)
                    for name, policy in zip(names, POLICIES.values(), strict=True)
                )
                for name, outcome in zip(POLICIES, await asyncio.gather(*runs), strict=True):
                    table.add_row(
                        load.name,
                        name,
                        _percentiles(outcome.waits_ms),
                        _percentiles(outcome.first_token_ms),
                        f"{outcome.tokens_per_s:,.0f}",
                    )
    return table


def _percentiles(values_ms: Sequence[float]) -> str:
    return ", ".join(f"{percentile(list(values_ms), share):,.0f} ms" for share in (0.5, 0.95))


def main() -> None:
    table = asyncio.run(measure())
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
