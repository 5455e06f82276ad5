"""Whether a claim takes longer the more jobs wait."""

import statistics
import time

from bench.measure import Figure, percentile, prompts
from bench.stage import OPTIONS, Stage
from bench.submitting import submit_pipelined
from millpond.messages import FinishReason, JobResult, JobStatus
from millpond.queue.job_queue import JobQueue

WINDOW = 32
SMALL = 1_000
CLAIMS = 400
PROMPT_BYTES = 100
MAX_RATIO = 1.2


async def _timed_claim(queue: JobQueue, texts: list[str]) -> float:
    """Milliseconds of one claim; then the jobs are ended and as many new ones queued."""
    start = time.perf_counter()
    claim = await queue.claim("bench", WINDOW, budget_tokens=10**9, capacity_tokens=10**9)
    elapsed_ms = (time.perf_counter() - start) * 1000
    assert len(claim.jobs) == WINDOW
    await queue.complete(
        [
            (
                job.fence,
                JobResult(id=job.id, status=JobStatus.SUCCEEDED, finish_reason=FinishReason.STOP),
            )
            for job in claim.jobs
        ]
    )
    await submit_pipelined(queue, texts, in_flight=1)
    return elapsed_ms


async def measure_backlog(stage: Stage, backlog: int) -> list[Figure]:
    """Two queues on one server, one claim from each in turn."""
    await stage.clear()
    # Rewriting the file of a million jobs takes a core, which would be measured with the claims.
    await stage.redis.config_set("auto-aof-rewrite-percentage", "0")
    small = JobQueue(stage.redis, "small", OPTIONS)
    large = JobQueue(stage.redis, "large", OPTIONS)
    texts = prompts(10_000, PROMPT_BYTES)
    for _ in range(0, backlog, len(texts)):
        await submit_pipelined(large, texts)
    await submit_pipelined(small, texts[:SMALL])
    times: dict[str, list[float]] = {"small": [], "large": []}
    for _ in range(CLAIMS):
        times["small"].append(await _timed_claim(small, texts[:WINDOW]))
        times["large"].append(await _timed_claim(large, texts[:WINDOW]))
    assert await small.depth() == SMALL
    medians = {name: statistics.median(values) for name, values in times.items()}
    p99 = {name: percentile(values, 0.99) for name, values in times.items()}
    times_as_long = medians["large"] / medians["small"]
    return [
        Figure(
            f"claim of {WINDOW}, {await large.depth():,} queued (median, p99)",
            f"{medians['large']:.2f} ms, {p99['large']:.2f} ms",
            f"{SMALL:,} queued: {medians['small']:.2f} ms, {p99['small']:.2f} ms",
            f"{times_as_long:.2f} times",
            f"≤ {MAX_RATIO:g} times",
            times_as_long <= MAX_RATIO,
        )
    ]
