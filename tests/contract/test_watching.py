"""Looking at a queue from close by: lanes, leases, and the workers' rows."""

from redis.asyncio import Redis

from millpond.messages import JobRequest, Priority
from millpond.messages.worker_rows import RowNow, WorkerRows
from millpond.queue.job_queue import JobQueue
from millpond.queue.subscriptions import GAP, Subscriptions
from millpond.queue.watching import HeldLeases
from tests.contract.jobs import a_worker, take


async def test_an_empty_queue_has_an_overview(queue: JobQueue) -> None:
    found = await queue.watch.overview()
    assert (found.lanes, found.leases) == ({}, {})


async def test_lanes_by_tenant_and_leases_by_worker(queue: JobQueue) -> None:
    for i, (tenant, priority) in enumerate(
        [("a", "normal"), ("a", "normal"), ("b", "batch"), ("a", "interactive"), ("b", "batch")]
    ):
        body = JobRequest(prompt="p", priority=Priority(priority))
        await queue.submit(body, id=f"j{i}", tenant=tenant)
    assert (await queue.watch.overview()).lanes == {
        "a": {Priority.INTERACTIVE: 1, Priority.NORMAL: 2},
        "b": {Priority.BATCH: 2},
    }
    taken = await take(queue, 2)
    found = await queue.watch.overview()
    assert sum(number for own in found.lanes.values() for number in own.values()) == 3
    [(worker, held)] = found.leases.items()
    assert (worker, held.number) == ("w", len(taken))
    lease_ms = queue.options.lease_s * 1000
    assert lease_ms - 5_000 < held.first_ends_in_ms <= lease_ms
    assert held == HeldLeases(2, held.first_ends_in_ms)


async def test_workers_learn_from_their_heartbeat_that_somebody_watches(
    queue: JobQueue, redis: Redis
) -> None:
    assert not await queue.beat("w", a_worker())
    await queue.watch.ask_for_rows(60.0)
    assert await queue.beat("w", a_worker())
    assert 0 < await redis.pttl(queue.keys["watched"]) <= 60_000
    await redis.delete(queue.keys["watched"])
    assert not await queue.beat("w", a_worker())


async def test_rows_come_to_whoever_listens(queue: JobQueue, redis: Redis) -> None:
    rows = WorkerRows(
        worker="w",
        slots=4,
        waiting=1,
        jobs_total=9,
        rows=[RowNow(job="j", index=0, tokens=3, max_tokens=8)],
    )
    subscriptions = Subscriptions(redis)
    async with subscriptions.listen(queue.watch.channel) as messages:
        found = GAP
        while found == GAP:
            await queue.watch.publish(rows)
            found = await messages.get()
    await subscriptions.close()
    assert WorkerRows.model_validate_json(found) == rows
