"""The same work through RQ, in a process of its own. Each function returns what it measured."""

import time

from redis import Redis
from rq import Queue, SimpleWorker


def no_op(prompt: str) -> None:
    """The job."""


def enqueue_many(url: str, prompts: list[str], chunk: int) -> float:
    """Jobs a second, ``chunk`` to a pipeline."""
    with Redis.from_url(url) as redis:
        queue = Queue("bench", connection=redis)
        start = time.perf_counter()
        for i in range(0, len(prompts), chunk):
            queue.enqueue_many([Queue.prepare_data(no_op, (p,)) for p in prompts[i : i + chunk]])
        seconds = time.perf_counter() - start
        assert queue.count == len(prompts)
        return len(prompts) / seconds


def enqueue(url: str, prompts: list[str]) -> float:
    """Jobs a second, each sent when the one before was answered."""
    with Redis.from_url(url) as redis:
        queue = Queue("bench", connection=redis)
        start = time.perf_counter()
        for prompt in prompts:
            queue.enqueue(no_op, prompt)
        return len(prompts) / (time.perf_counter() - start)


def drain(url: str, prompts: list[str]) -> float:
    """Jobs a second that a SimpleWorker ends in a burst, its logging at warnings only."""
    with Redis.from_url(url) as redis:
        queue = Queue("bench", connection=redis)
        queue.enqueue_many([Queue.prepare_data(no_op, (p,)) for p in prompts])
        worker = SimpleWorker([queue], connection=redis)
        start = time.perf_counter()
        worker.work(burst=True, logging_level="WARNING")
        seconds = time.perf_counter() - start
        assert queue.count == 0
        assert queue.finished_job_registry.count == len(prompts)
        return len(prompts) / seconds
