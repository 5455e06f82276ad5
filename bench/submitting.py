"""Submitting: in bulk, and one at a time."""

import asyncio
import time

from bench import rq_peer
from bench.measure import Figure, alternate, prompts, ratio
from bench.stage import Stage
from millpond.messages import JobRequest
from millpond.queue.job_queue import JobQueue
from millpond.queue.submission import NewJob, Submission

CHUNK = 500
IN_FLIGHT = 2
CALLERS = 16
PROMPT_BYTES = 400


async def submit_pipelined(queue: JobQueue, texts: list[str], in_flight: int = IN_FLIGHT) -> None:
    """In chunks, one being packed while the server works on another."""
    chunks = iter([texts[i : i + CHUNK] for i in range(0, len(texts), CHUNK)])

    async def submit_some() -> None:
        for chunk in chunks:
            answers = await queue.submit_many([NewJob(JobRequest(prompt=p)) for p in chunk])
            assert all(isinstance(a, Submission) and a.created for a in answers)

    await asyncio.gather(*(submit_some() for _ in range(in_flight)))


async def measure_pipelined(stage: Stage) -> list[Figure]:
    texts = prompts(30_000, PROMPT_BYTES)

    async def ours(in_flight: int) -> float:
        await stage.clear()
        start = time.perf_counter()
        await submit_pipelined(stage.queue, texts, in_flight)
        seconds = time.perf_counter() - start
        assert await stage.queue.depth() == len(texts)
        return len(texts) / seconds

    two, one, peer = await alternate(
        lambda: ours(IN_FLIGHT),
        lambda: ours(1),
        lambda: stage.rq(rq_peer.enqueue_many, texts[:10_000], CHUNK),
    )
    return [
        ratio(f"submit_many, {IN_FLIGHT} chunks of {CHUNK} in flight", two, peer, at_least=5),
        Figure("  the same, one chunk in flight", f"{one:,.0f}/s", "", f"{one / peer:.1f} times"),
    ]


async def measure_one_at_a_time(stage: Stage) -> list[Figure]:
    texts = prompts(6_000, PROMPT_BYTES)

    async def ours(callers: int) -> float:
        await stage.clear()
        waiting = iter(texts)

        async def call() -> None:
            for text in waiting:
                assert (await stage.queue.submit(JobRequest(prompt=text))).created

        start = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(callers)))
        return len(texts) / (time.perf_counter() - start)

    one, many, peer = await alternate(
        lambda: ours(1),
        lambda: ours(CALLERS),
        lambda: stage.rq(rq_peer.enqueue, texts[:3_000]),
    )
    return [
        ratio("submit, each awaited before the next", one, peer, at_least=3),
        Figure(f"  the same, {CALLERS} callers", f"{many:,.0f}/s", "", f"{many / peer:.1f} times"),
    ]
