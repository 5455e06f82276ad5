"""Looking at jobs and at the queue; waiting for an end."""

import asyncio

import pytest
from redis.asyncio import Redis

from millpond.errors import JobNotFoundError
from millpond.messages import JobStatus, Priority
from millpond.messages.worker_state import WorkerState, WorkerWindow
from millpond.queue.job_queue import FORGET_WORKER_AFTER_MS, JobQueue
from millpond.queue.results import Results
from tests.contract.jobs import (
    a_worker,
    failed,
    put,
    request,
    success,
    take,
    take_one,
    until,
    with_options,
)


async def test_get_through_a_jobs_life(queue: JobQueue, results: Results) -> None:
    await put(queue, "a")
    view = await results.get("a")
    assert (view.status, view.attempts, view.worker, view.result) == (
        JobStatus.QUEUED,
        0,
        None,
        None,
    )
    assert (view.position, view.ahead) == (1, 0)
    job = await take_one(queue)
    view = await results.get("a")
    assert (view.status, view.attempts, view.worker) == (JobStatus.RUNNING, 1, "w")
    assert view.claimed_ms is not None
    assert view.claimed_ms >= view.created_ms
    assert (view.position, view.ahead) == (None, None)
    await queue.complete([(job.fence, success("a", "text"))])
    view = await results.get("a")
    assert view.status is JobStatus.SUCCEEDED
    assert view.result is not None
    assert view.result.text == "text"
    assert (view.streams, view.cancelling, view.retry_in_ms) == (True, False, None)


async def test_get_unknown_and_of_another_tenant(queue: JobQueue, results: Results) -> None:
    await queue.submit(request(), id="a", tenant="one")
    assert (await results.get("a", tenant="one")).tenant == "one"
    for id, tenant in (("b", None), ("a", "two")):
        with pytest.raises(JobNotFoundError):
            await results.get(id, tenant=tenant)
        with pytest.raises(JobNotFoundError):
            await results.wait(id, 0.01, tenant=tenant)
        with pytest.raises(JobNotFoundError):
            await anext(results.subscribe(id, tenant=tenant))


async def test_positions(queue: JobQueue, results: Results) -> None:
    await put(queue, "n1", "n2", "n3")
    await put(queue, "b1", "b2", priority="batch")
    await put(queue, "i1", "i2", priority="interactive")

    async def places(*names: str) -> list[tuple[int | None, int | None]]:
        return [(v.position, v.ahead) for v in [await results.get(name) for name in names]]

    assert await places("i1", "i2") == [(1, 0), (2, 1)]
    assert await places("n1", "n3") == [(1, 2), (3, 4)]
    assert await places("b1", "b2") == [(1, 5), (2, 6)]
    await queue.cancel("n1")
    assert await places("n2", "n3") == [(1, 2), (2, 3)]
    await queue.complete([(job.fence, success(job.id)) for job in await take(queue, 2)])
    assert await places("n2", "n3", "b1") == [(1, 0), (2, 1), (1, 2)]


async def test_positions_of_retries_and_behind_cancelled_jobs(
    queue: JobQueue, redis: Redis, results: Results
) -> None:
    slow = with_options(queue, redis, retry_delay_s=60.0)
    names = [f"j{i}" for i in range(40)]
    await put(slow, *names)
    first = await take_one(slow)
    await slow.fail(first.fence, first.attempt, failed(first.id))
    for name in names[1:30]:
        await slow.cancel(name)
    view = await results.get("j0")  # a retry goes before all lanes when its time has come
    assert (view.position, view.ahead) == (1, 0)
    for place, name in enumerate(names[30:]):
        view = await results.get(name)
        assert (view.position, view.ahead, view.ahead_exact) == (place + 1, place, True)


async def test_get_results_of_many(queue: JobQueue, results: Results) -> None:
    await put(queue, "a", "b", "c")
    one, *_ = await take(queue, 1)
    await queue.complete([(one.fence, success("a", "text"))])
    await queue.cancel("c")
    found = await results.get_results(["a", "b", "c", "d"])
    assert {id: result.status for id, result in found.items()} == {
        "a": JobStatus.SUCCEEDED,
        "c": JobStatus.CANCELLED,
    }
    assert await results.get_results([]) == {}


async def test_wait_returns_the_moment_that_the_job_ends(queue: JobQueue, results: Results) -> None:
    await put(queue, "a", "b")
    waiters = [asyncio.create_task(results.wait("a", 30.0)) for _ in range(5)]
    jobs = {job.id: job for job in await take(queue)}
    await queue.complete([(jobs["b"].fence, success("b"))])
    assert not any(waiter.done() for waiter in waiters)
    await queue.complete([(jobs["a"].fence, success("a"))])
    async with asyncio.timeout(3):  # well under the interval of looking for oneself
        views = await asyncio.gather(*waiters)
    assert {view.status for view in views} == {JobStatus.SUCCEEDED}


async def test_wait_for_what_has_ended_or_does_not_end(queue: JobQueue, results: Results) -> None:
    await put(queue, "a", "b")
    await queue.cancel("a")
    assert (await results.wait("a", 30.0)).status is JobStatus.CANCELLED
    assert (await results.wait("b", 0.0)).status is JobStatus.QUEUED
    assert (await results.wait("b", 0.03)).status is JobStatus.QUEUED


async def test_wait_for_a_job_without_a_stream(queue: JobQueue, results: Results) -> None:
    await put(queue, "a", stream=False)
    waiter = asyncio.create_task(results.wait("a", 30.0))
    job = await take_one(queue)
    await queue.complete([(job.fence, success("a"))])
    async with asyncio.timeout(3):
        assert (await waiter).status is JobStatus.SUCCEEDED


async def test_queue_state(queue: JobQueue, redis: Redis, results: Results) -> None:
    strict = with_options(queue, redis, max_attempts=1)
    slow = with_options(queue, redis, retry_delay_s=60.0)
    await put(queue, "a", "b", "c", "d")
    await put(queue, "i", priority="interactive")
    jobs = {job.id: job for job in await take(queue, 4)}
    assert jobs.keys() == {"i", "a", "b", "c"}
    await queue.complete([(jobs["i"].fence, success("i"))])
    await strict.fail(jobs["a"].fence, 1, failed("a"))
    await slow.fail(jobs["b"].fence, 1, failed("b"))
    state = await results.queue_state()
    assert state.queued == {Priority.INTERACTIVE: 0, Priority.NORMAL: 2, Priority.BATCH: 0}
    assert state.accepted == {Priority.INTERACTIVE: 1, Priority.NORMAL: 4, Priority.BATCH: 0}
    assert (state.depth, state.running, state.delayed, state.dead) == (2, 1, 1, 1)
    assert (state.leases_lost, state.retries, state.dead_letters) == (0, 1, 1)
    assert state.unfinished == {"default": 3}
    assert {status: n for status, n in state.done.items() if n} == {
        JobStatus.SUCCEEDED: 1,
        JobStatus.FAILED: 1,
    }


async def test_the_state_says_how_long_the_next_job_of_each_priority_has_waited(
    queue: JobQueue, results: Results
) -> None:
    for tenant in ("first", "second"):
        await queue.submit(request(), tenant=tenant)

    async def waited() -> bool:
        state = await results.queue_state()
        assert state.waiting_ms[Priority.INTERACTIVE] == state.waiting_ms[Priority.BATCH] == 0
        return state.waiting_ms[Priority.NORMAL] >= 20

    await until(waited)
    assert len(await take(queue, 2)) == 2
    assert set((await results.queue_state()).waiting_ms.values()) == {0}


async def test_an_empty_queue_has_a_state(queue: JobQueue, results: Results) -> None:
    state = await results.queue_state()
    assert (state.depth, state.running, state.workers, state.jobs_per_s) == (0, 0, [], 0.0)


async def test_worker_registry(queue: JobQueue, redis: Redis, results: Results) -> None:
    async def workers() -> dict[str, WorkerState]:
        return {w.id: w.state for w in (await results.queue_state()).workers}

    first = a_worker(jobs_per_s=2.5, window=WorkerWindow(close_jobs=2, max_jobs=8))
    second = a_worker(model="ä", jobs_per_s=1, slots=4, capacity_tokens=100)
    await queue.beat("w1", first)
    await queue.beat("w2", second)
    assert await workers() == {"w1": first, "w2": second}
    state = await results.queue_state()
    assert all(worker.alive and worker.beat_age_ms < 5_000 for worker in state.workers)
    assert state.jobs_per_s == 3.5
    await queue.beat("w2", None)
    await queue.beat("w2", None)
    assert (await workers()).keys() == {"w1"}


async def test_an_entry_that_cannot_be_read_is_passed_over(
    queue: JobQueue, redis: Redis, results: Results
) -> None:
    """Of a worker that is much newer, or written by hand."""
    for entry in ('1700000000000 {"state": "dreaming", "model": "m"}', "1700000000000 {}", "what"):
        await redis.hset(queue.keys.workers, "odd", entry)
        assert (await results.queue_state()).workers == []
    await redis.delete(queue.keys.workers)


async def test_silent_workers_are_forgotten(
    queue: JobQueue, redis: Redis, results: Results
) -> None:
    async def sign(worker: str, age_ms: int) -> None:
        seconds, _ = await redis.time()
        await redis.hset(
            queue.keys.workers,
            worker,
            b"%d %b" % (int(seconds) * 1000 - age_ms, a_worker().to_json()),
        )

    await sign("silent", FORGET_WORKER_AFTER_MS // 2)
    await sign("gone", FORGET_WORKER_AFTER_MS + 2_000)
    await queue.beat("w", a_worker())
    seen = {w.id: w.alive for w in (await results.queue_state()).workers}
    assert seen == {"w": True, "silent": False}


async def test_a_registered_worker_ages(queue: JobQueue, results: Results) -> None:
    await queue.beat("w", a_worker())

    async def aged() -> bool:
        [worker] = (await results.queue_state()).workers
        return worker.beat_age_ms > 0

    await until(aged)
