"""A large and a small worker on one queue: no job fails that one of them can run."""

import asyncio

from millpond.messages import JobStatus
from millpond.messages.worker_state import WorkerPhase
from tests.integration.test_worker import Bench, bench, options, until

__all__ = ["bench", "options"]  # fixtures


async def ready(bench: Bench, number: int) -> bool:
    workers = (await bench.results.queue_state()).workers
    return [w.state.state for w in workers] == [WorkerPhase.READY] * number


async def test_jobs_that_do_not_fit_the_small_worker_go_to_the_large_one(bench: Bench) -> None:
    async with bench.worker(id="small", slots=2), bench.worker(id="large", slots=8):
        await until(lambda: ready(bench, 2))
        wide = [await bench.submit(f"wide {i}", n=4) for i in range(6)]
        narrow = [await bench.submit(f"narrow {i}") for i in range(6)]
        for id in (*wide, *narrow):
            assert await bench.ended(id) is JobStatus.SUCCEEDED
        for id in wide:
            view = await bench.results.get(id)
            assert view.attempts == 1
            assert view.result is not None
            assert view.result.receipt is not None
            assert view.result.receipt.worker == "large"


async def test_it_fails_once_no_larger_worker_lives(bench: Bench) -> None:
    async with bench.worker(id="small", slots=2) as (small, _):
        async with bench.worker(id="large", slots=8):
            await until(lambda: ready(bench, 2))
        id = await bench.submit("wide", n=4)
        async with asyncio.timeout(10):
            assert await bench.ended(id) is JobStatus.FAILED
        view = await bench.results.get(id)
        assert view.result is not None
        assert view.result.error is not None
        assert "2 slots" in view.result.error.message
        assert small.ready
