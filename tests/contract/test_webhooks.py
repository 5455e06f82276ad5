"""What is owed to webhooks when jobs end, over every back-end: written with the result, taken, settled."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from millpond.errors import InvalidRequestError
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from millpond.webhooks.deliveries import Deliveries, Delivery, Outcome
from millpond.webhooks.endpoints import MAX_ENDPOINTS, Endpoints
from millpond.webhooks.events import WebhookEvent
from tests.contract.invariants import check_invariants, check_only_ttl_left
from tests.contract.jobs import failed, request, success, take_one, until, with_options

URL = "https://receiver.example/hook"


@pytest.fixture
def deliveries(redis: Redis, queue: JobQueue) -> Deliveries:
    return Deliveries(redis, queue.keys)


@pytest.fixture
def endpoints(redis: Redis, queue: JobQueue) -> Endpoints:
    return Endpoints(redis, queue.keys)


async def submit(queue: JobQueue, id: str, tenant: str = "default", **fields: object) -> None:
    await queue.submit(request(**{"webhook_url": URL, **fields}), id=id, tenant=tenant)


async def finish(queue: JobQueue) -> None:
    job = await take_one(queue)
    await queue.complete([(job.fence, success(job.id))])


async def fail(queue: JobQueue) -> None:
    job = await take_one(queue)
    await queue.fail(job.fence, job.attempt, failed(job.id))


async def cancel(queue: JobQueue) -> None:
    await queue.cancel("j")


async def pass_the_deadline(queue: JobQueue) -> None:
    async def over() -> bool:
        await queue.reap()
        return await queue.depth() == 0

    await until(over)


async def due_again(redis: Redis, queue: JobQueue, name: str) -> None:
    """As if the time had come."""
    await redis.zadd(queue.keys["deliveries"], {name: 1_000})


async def test_a_job_s_receiver_counts_among_what_its_tenant_stores(
    redis: Redis, queue: JobQueue
) -> None:
    """Else a tenant whose receiver is dead could fill the server with what is owed to it."""
    stored = []
    for id, url in (("without", None), ("with", URL + "x" * 1_000)):
        await submit(queue, id, id, webhook_url=url)
        await finish(queue)
        [number] = (await redis.hgetall(queue.keys["stored"] + id)).values()
        stored.append(int(number) - int(await redis.strlen(queue.keys.result(id))))
    assert stored[0] == 0
    assert stored[1] > len(URL) + 1_000


@pytest.mark.parametrize(
    ("end", "event", "fields"),
    [
        (finish, WebhookEvent.JOB_SUCCEEDED, {}),
        (fail, WebhookEvent.JOB_FAILED, {}),
        (cancel, WebhookEvent.JOB_CANCELLED, {}),
        (pass_the_deadline, WebhookEvent.JOB_EXPIRED, {"deadline_s": 0.001}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_however_a_job_ends_its_webhook_is_owed_from_then_on(
    redis: Redis,
    queue: JobQueue,
    results: Results,
    deliveries: Deliveries,
    endpoints: Endpoints,
    end: Callable[[JobQueue], Awaitable[None]],
    event: WebhookEvent,
    fields: dict[str, object],
) -> None:
    queue = with_options(queue, redis, max_attempts=1)
    await submit(queue, "j", **fields)
    await check_invariants(redis, queue.keys)
    assert await deliveries.take(10) == []

    await end(queue)

    [owed] = await deliveries.take(10)
    assert (owed.subject, owed.event, owed.tenant, owed.url) == ("j", event, "default", URL)
    assert owed.secret == await endpoints.secret("default")
    assert await deliveries.settle(owed, Outcome.DELIVERED)
    assert await deliveries.pending() == 0
    assert (await results.queue_state()).webhooks_delivered == 1
    check_only_ttl_left(await check_invariants(redis, queue.keys))


async def test_a_job_without_a_webhook_leaves_nothing(
    redis: Redis, queue: JobQueue, deliveries: Deliveries
) -> None:
    await submit(queue, "j", webhook_url=None)
    await finish(queue)

    shot = await check_invariants(redis, queue.keys)
    assert not [key for key in shot.raw if "deliver" in key or "webhook" in key]
    assert "webhook" not in shot.raw[queue.keys.job("j")]


async def test_endpoints_are_told_of_what_they_want_of_their_tenant(
    queue: JobQueue, deliveries: Deliveries, endpoints: Endpoints
) -> None:
    everything, secret = await endpoints.add("acme", URL)
    failures, _ = await endpoints.add("acme", URL, [WebhookEvent.JOB_FAILED])
    await endpoints.add("other", URL)
    await submit(queue, "j", "acme", webhook_url=None)

    await finish(queue)

    [owed] = await deliveries.take(10)
    assert owed.name == f"{everything.id}/j"
    assert owed.secret == secret
    assert secret not in repr(owed)
    assert failures.events == ("job.failed",)


async def test_a_try_is_held_until_it_is_settled_or_its_lease_ends(
    redis: Redis, queue: JobQueue, deliveries: Deliveries
) -> None:
    await submit(queue, "j")
    await finish(queue)
    [first] = await deliveries.take(10)
    assert await deliveries.take(10) == []
    assert (await deliveries.due_in_s() or 0) > 60

    await due_again(redis, queue, first.name)  # who had it has died
    [second] = await deliveries.take(10)

    assert second == replace(first, tries=2)
    assert not await deliveries.settle(first, Outcome.DELIVERED), "another has it now"
    assert await deliveries.settle(second, Outcome.RETRY, delay_s=1_000, why="answered 500")
    assert 900 < (await deliveries.due_in_s() or 0) <= 1_000
    assert not await deliveries.settle(second, Outcome.DELIVERED), "it is settled"


async def test_a_postponed_delivery_has_not_been_tried(
    redis: Redis, queue: JobQueue, deliveries: Deliveries
) -> None:
    await submit(queue, "j")
    await finish(queue)
    [owed] = await deliveries.take(10)

    await deliveries.settle(owed, Outcome.POSTPONED, delay_s=50)
    await due_again(redis, queue, owed.name)

    assert await deliveries.take(10) == [owed]


async def test_an_endpoint_that_is_gone_is_sent_nothing_any_more(
    redis: Redis, queue: JobQueue, deliveries: Deliveries, endpoints: Endpoints
) -> None:
    endpoint, _ = await endpoints.add("default", URL)
    for id in ("one", "two"):
        await submit(queue, id, webhook_url=None)
        await finish(queue)
    first, second = await deliveries.take(10)

    await deliveries.settle(first, Outcome.GONE, why="answered 410")

    await due_again(redis, queue, second.name)
    assert await deliveries.take(10) == [], "what was pending is dropped"
    await submit(queue, "three", webhook_url=None)
    await finish(queue)
    assert await deliveries.pending() == 0
    [listed] = await endpoints.list()
    assert listed.id == endpoint.id
    assert listed.disabled_ms is not None
    assert listed.failure == "answered 410"
    assert await redis.hget(queue.keys.counts, "undelivered") == b"1"


async def test_a_removed_endpoint_is_sent_nothing_any_more(
    queue: JobQueue, deliveries: Deliveries, endpoints: Endpoints
) -> None:
    endpoint, _ = await endpoints.add("default", URL)
    await submit(queue, "j", webhook_url=None)
    await finish(queue)

    await endpoints.remove(endpoint.id)

    assert await deliveries.take(10) == []
    assert await endpoints.list() == []
    assert not await endpoints.remove(endpoint.id)
    assert not await endpoints.remove("nonsense")


async def test_an_id_that_is_used_again_owes_its_own_events(
    redis: Redis, queue: JobQueue, deliveries: Deliveries
) -> None:
    """The record has expired, its delivery has not: the receiver is away."""
    await submit(queue, "j")
    await finish(queue)
    await redis.delete(queue.keys.job("j"), queue.keys.result("j"), queue.keys.events("j"))
    await redis.delete(queue.keys.ended("default"), queue.keys["stored"] + "default")

    await submit(queue, "j", webhook_url=URL + "/new")
    assert await deliveries.take(10) == []
    await queue.cancel("j")

    [owed] = await deliveries.take(10)
    assert (owed.event, owed.url, owed.tries) == ("job.cancelled", URL + "/new", 1)
    # What was lost with the first record is no business of this test.
    await redis.flushall()


async def test_an_event_that_is_no_jobs_is_announced_once(
    deliveries: Deliveries, endpoints: Endpoints
) -> None:
    await endpoints.add("acme", URL, [WebhookEvent.BATCH_COMPLETED])
    data = {"id": "batch_1", "request_counts": {"total": 2}}

    async def announce() -> int:
        return await deliveries.announce(
            WebhookEvent.BATCH_COMPLETED, "batch_1", data, tenant="acme", at_ms=1_000, url=URL
        )

    assert await announce() == await announce() == 2
    owed: list[Delivery] = await deliveries.take(10)
    assert [one.data for one in owed] == [data, data]
    assert {one.at_ms for one in owed} == {1_000}
    assert await deliveries.take(10) == []


async def test_endpoints_are_checked_and_counted(endpoints: Endpoints) -> None:
    for tenant, url, field in [("a b", URL, "tenant"), ("acme", "ftp://x", "webhook_url")]:
        with pytest.raises(InvalidRequestError) as refused:
            await endpoints.add(tenant, url)
        assert refused.value.field == field
    for _ in range(MAX_ENDPOINTS):
        await endpoints.add("acme", URL)
    with pytest.raises(InvalidRequestError, match=f"{MAX_ENDPOINTS} endpoints") as refused:
        await endpoints.add("acme", URL)
    assert refused.value.limit == MAX_ENDPOINTS
    assert await endpoints.secret("acme") == await endpoints.secret("acme")
    assert await endpoints.secret("acme") != await endpoints.secret("other")
