"""How tenants share the workers: by the tokens that they are served, and by their weights."""

from collections import Counter

import pytest
from redis.asyncio import Redis

from millpond.errors import InvalidRequestError
from millpond.messages import Priority, Usage
from millpond.queue.claims import ClaimedJob
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from millpond.queue.submission import NewJob
from millpond.queue.tenants import Tenant, Tenants
from tests.contract.invariants import Snapshot
from tests.contract.jobs import PLENTY, ids, lease_over, request, success, take, with_options


@pytest.fixture
def roomy(queue: JobQueue, redis: Redis) -> JobQueue:
    return with_options(queue, redis, max_depth=100_000)


async def put_of(queue: JobQueue, tenant: str, number: int, tokens: int = 10) -> None:
    """Jobs TENANT-0, TENANT-1, ..."""
    news = [NewJob(request(stream=False), f"{tenant}-{i}", tenant, tokens) for i in range(number)]
    await queue.submit_many(news)


async def end(queue: JobQueue, jobs: list[ClaimedJob], tokens: int) -> None:
    usage = Usage(prompt_tokens=0, completion_tokens=tokens)
    await queue.complete([(job.fence, success(job.id, usage=usage)) for job in jobs])


def tenants_of(jobs: list[ClaimedJob]) -> Counter[str]:
    return Counter(job.id.partition("-")[0] for job in jobs)


async def counters(redis: Redis, queue: JobQueue, kind: str = "active") -> dict[str, int]:
    return (await Snapshot.take(redis, queue.keys)).counters(kind, Priority.NORMAL)


async def test_a_small_tenant_is_in_the_next_window(roomy: JobQueue) -> None:
    """However many jobs another has queued before it."""
    await put_of(roomy, "big", 500)
    await take(roomy, 64)
    await put_of(roomy, "small", 5)
    assert tenants_of(await take(roomy, 10)) == {"big": 5, "small": 5}


async def test_shares_are_of_tokens_not_of_jobs(roomy: JobQueue) -> None:
    await put_of(roomy, "long", 100, tokens=30)
    await put_of(roomy, "short", 100, tokens=10)
    assert tenants_of(await take(roomy, 40)) == {"long": 10, "short": 30}


async def test_shares_follow_the_weights(roomy: JobQueue, redis: Redis) -> None:
    tenants = Tenants(redis, roomy.keys)
    await tenants.set_weight("two", 2)
    await tenants.set_weight("half", 0.5)
    for name in ("one", "two", "half"):
        await put_of(roomy, name, 60)
    assert tenants_of(await take(roomy, 35)) == {"one": 10, "two": 20, "half": 5}
    await tenants.set_weight("two", 1)
    before = await counters(redis, roomy)
    await take(roomy, 30)
    after = await counters(redis, roomy)
    assert after["two"] - before["two"] == after["one"] - before["one"]


async def test_each_priority_is_shared_by_itself(queue: JobQueue) -> None:
    for i in range(8):
        await queue.submit(request(), id=f"a-{i}", tenant="a", tokens=10)
        for tenant in ("a", "b"):
            high = request(priority=Priority.INTERACTIVE)
            await queue.submit(high, id=f"{tenant}-high-{i}", tenant=tenant, tokens=10)
    jobs = await take(queue, 16)
    high = [job for job in jobs if "high" in job.id]
    assert tenants_of(high) == {"a": 7, "b": 6}  # and three of the lower priority, all of a's


async def test_nobody_saves_up_while_away(roomy: JobQueue, redis: Redis) -> None:
    """A tenant that comes is lifted to the others' level; it has no claim on what it did not ask."""
    await put_of(roomy, "old", 200)
    await end(roomy, await take(roomy, 100), 10)
    await put_of(roomy, "new", 200)
    found = await counters(redis, roomy)
    assert found["new"] == found["old"] == 1_000_000
    assert tenants_of(await take(roomy, 40)) == {"old": 20, "new": 20}


async def test_leaving_pays_no_debt(queue: JobQueue) -> None:
    """Who has been served more than the others stays behind them, though it went away meanwhile."""
    await put_of(queue, "ann", 1, tokens=100)
    await put_of(queue, "bob", 30, tokens=10)
    assert ids(await take(queue, 2)) == ["ann-0", "bob-0"]  # and ann has no job left
    await queue.submit(request(), id="ann-again", tenant="ann", tokens=10)
    order = ids(await take(queue, 12))
    assert order.index("ann-again") == 9  # when bob has been served his hundred tokens, too


async def test_an_idle_tenants_counter_is_forgotten_once_it_says_nothing(
    roomy: JobQueue, redis: Redis
) -> None:
    await put_of(roomy, "ann", 1, tokens=50)
    await put_of(roomy, "bob", 20)
    assert ids(await take(roomy, 2)) == ["ann-0", "bob-0"]
    assert await counters(redis, roomy, "idle") == {"ann": 50_000}
    await put_of(roomy, "cid", 1)
    await take(roomy, 10)  # bob and cid come past fifty tokens
    assert await counters(redis, roomy, "idle") == {}


async def test_the_charge_is_put_right_once(roomy: JobQueue, redis: Redis) -> None:
    await put_of(roomy, "ann", 5, tokens=100)
    [job] = await take(roomy, 1)
    assert await counters(redis, roomy) == {"ann": 100_000}
    for _ in range(2):
        await end(roomy, [job], 7)
    assert await counters(redis, roomy) == {"ann": 7_000}
    await take(roomy, 1)
    assert await counters(redis, roomy) == {"ann": 107_000}  # one is not enough to learn from


async def test_a_job_that_never_became_a_row_costs_nothing(roomy: JobQueue, redis: Redis) -> None:
    await put_of(roomy, "ann", 2)
    [job] = await take(roomy, 1)
    await roomy.complete([(job.fence, success(job.id))])  # without usage
    assert await counters(redis, roomy) == {"ann": 0}


async def test_the_charge_follows_the_attempt(roomy: JobQueue, redis: Redis) -> None:
    """Given back with a refunded attempt, kept with one that is spent and after a death alone."""
    brief = with_options(roomy, redis, lease_s=0.02)
    await put_of(brief, "ann", 9)
    released = await take(brief, 2)
    assert await brief.release([(job.id, job.fence) for job in released]) == 2
    assert await counters(redis, brief) == {"ann": 0}
    await take(brief, 2)
    await lease_over(redis, brief)
    await brief.reap()  # two that died together: refunded
    assert await counters(redis, brief) == {"ann": 0}
    await take(brief, 1)  # a suspect, alone
    await lease_over(redis, brief)
    await brief.reap()
    assert await counters(redis, brief) == {"ann": 10_000}


async def test_a_released_job_keeps_its_place(queue: JobQueue) -> None:
    await put_of(queue, "ann", 6)
    jobs = await take(queue, 3)
    await queue.release([(job.id, job.fence) for job in reversed(jobs)])
    assert ids(await take(queue)) == [f"ann-{i}" for i in range(6)]


async def test_more_tenants_than_a_claim_takes_jobs(roomy: JobQueue) -> None:
    for i in range(30):
        await put_of(roomy, f"t{i}", 2)
    first = tenants_of(await take(roomy, 20))
    second = tenants_of(await take(roomy, 20))
    assert set(first.values()) == {1}
    assert len(first.keys() | second.keys()) == 30


async def test_what_does_not_fit_stays_first(queue: JobQueue) -> None:
    await put_of(queue, "ann", 2, tokens=60)
    await put_of(queue, "bob", 2, tokens=10)
    assert ids(await take(queue, budget=60, capacity=100)) == ["ann-0"]
    claim = await queue.claim("w", 9, budget_tokens=30, capacity_tokens=100)
    assert ids(claim.jobs) == ["bob-0", "bob-1"]
    assert claim.left == 1
    assert ids(await take(queue, budget=PLENTY)) == ["ann-1"]


async def test_the_jobs_ahead_are_told_about(roomy: JobQueue, results: Results) -> None:
    await put_of(roomy, "big", 400)
    await end(roomy, await take(roomy, 20), 10)
    await put_of(roomy, "small", 10)
    places = [await results.get(f"small-{i}") for i in (0, 9)]
    assert [(v.position, v.ahead, v.ahead_exact) for v in places] == [
        (1, 0, True),
        (10, 18, False),
    ]
    last = await results.get("big-399")
    assert (last.position, last.ahead) == (380, 389)
    order = ids(await take(roomy, 20))
    assert abs(order.index("small-9") - 18) <= 1


async def test_many_tenants_ahead(roomy: JobQueue, results: Results) -> None:
    for i in range(130):
        await put_of(roomy, f"t{i}", 3, tokens=1)
    view = await results.get("t77-2")
    assert view.position == 3
    assert view.ahead is not None
    assert abs(view.ahead - 2 * 130) <= 2


async def test_tenants_are_listed(queue: JobQueue, redis: Redis) -> None:
    tenants = Tenants(redis, queue.keys)
    await tenants.set_weight("quiet", 2.5)
    await put_of(queue, "ann", 3)
    assert await tenants.list() == [Tenant("ann", 1.0, 3), Tenant("quiet", 2.5, 0)]
    await tenants.set_weight("quiet", 1)
    assert await tenants.list() == [Tenant("ann", 1.0, 3)]


@pytest.mark.parametrize(
    ("tenant", "weight", "field"),
    [
        ("a:b", 1.0, "tenant"),
        ("a", 0.0, "weight"),
        ("a", 101.0, "weight"),
        ("a", float("nan"), "weight"),
    ],
)
async def test_bad_weights(
    redis: Redis, queue: JobQueue, tenant: str, weight: float, field: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await Tenants(redis, queue.keys).set_weight(tenant, weight)
    assert caught.value.field == field
