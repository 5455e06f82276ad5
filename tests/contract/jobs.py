"""Short ways to say what the queue's tests do all the time."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from redis.asyncio import Redis

from millpond.messages import (
    EventType,
    FinishReason,
    JobError,
    JobEvent,
    JobRequest,
    JobResult,
    JobStatus,
    Priority,
)
from millpond.messages.worker_state import WorkerPhase, WorkerState
from millpond.queue.claims import ClaimedJob
from millpond.queue.job_queue import JobQueue, QueueOptions

PLENTY = 1_000_000
SHORT_LEASE_S = 0.05
LIMIT_S = 10.0


def request(prompt: str = "hello", **fields: Any) -> JobRequest:
    return JobRequest(prompt=prompt, **fields)


def with_options(queue: JobQueue, redis: Redis, **changes: Any) -> JobQueue:
    """The same queue, seen by a process with other options."""
    return JobQueue(redis, "test", replace(queue.options, **changes))


async def put(queue: JobQueue, *ids: str, priority: str = "normal", **fields: Any) -> None:
    for id in ids:
        await queue.submit(request(priority=Priority(priority), **fields), id=id, tokens=10)


async def take(
    queue: JobQueue,
    count: int = 100,
    *,
    worker: str = "w",
    budget: int = PLENTY,
    capacity: int = PLENTY,
) -> list[ClaimedJob]:
    claim = await queue.claim(worker, count, budget_tokens=budget, capacity_tokens=capacity)
    return claim.jobs


async def take_one(queue: JobQueue) -> ClaimedJob:
    [job] = await take(queue, 1)
    return job


def a_worker(**fields: Any) -> WorkerState:
    """The registry entry of a worker that is ready."""
    return WorkerState.model_validate({"state": WorkerPhase.READY, "model": "m", **fields})


def ids(jobs: list[ClaimedJob]) -> list[str]:
    return [job.id for job in jobs]


def success(id: str, text: str = "done", **fields: Any) -> JobResult:
    return JobResult(
        id=id, status=JobStatus.SUCCEEDED, finish_reason=FinishReason.STOP, text=text, **fields
    )


def failed(id: str, message: str = "broken") -> JobResult:
    return JobResult(
        id=id,
        status=JobStatus.FAILED,
        finish_reason=FinishReason.ERROR,
        error=JobError(code="generation_failed", message=message),
    )


def delta(job: ClaimedJob, text: str, offset: int = 0) -> tuple[int, JobEvent]:
    event = JobEvent(type=EventType.DELTA, id=job.id, attempt=job.attempt, text=text, offset=offset)
    return job.fence, event


async def until(condition: Callable[[], Awaitable[Any]], limit_s: float = LIMIT_S) -> Any:
    """Ask again and again until the answer is true; the answer."""
    async with asyncio.timeout(limit_s):
        while not (answer := await condition()):
            await asyncio.sleep(0.005)
        return answer


async def server_ms(redis: Redis) -> int:
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def lease_over(redis: Redis, queue: JobQueue) -> None:
    """Until the server's clock is past every lease."""

    async def over() -> bool:
        last = await redis.zrange(queue.keys["leases"], -1, -1, withscores=True)
        return not last or await server_ms(redis) > last[0][1]

    await until(over)


async def due(redis: Redis, queue: JobQueue) -> None:
    """Until the delay of every waiting job is over."""

    async def over() -> bool:
        last = await redis.zrange(queue.keys["delayed"], -1, -1, withscores=True)
        return not last or await server_ms(redis) > last[0][1]

    await until(over)


def short_lease(options: QueueOptions) -> QueueOptions:
    return replace(options, lease_s=SHORT_LEASE_S)
