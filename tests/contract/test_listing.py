"""Lists of jobs in pages, over every back-end."""

import pytest
from redis.asyncio import Redis

from millpond.errors import InvalidRequestError, JobNotFoundError
from millpond.listing import LOOK, JobLists, Page
from millpond.messages import JobStatus
from millpond.queue.job_queue import JobQueue
from millpond.queue.submission import NewJob
from tests.contract.jobs import failed, put, request, success, take, with_options

MINE = "default"


@pytest.fixture
def lists(queue: JobQueue, redis: Redis) -> JobLists:
    return JobLists(redis, queue.keys)


def ids(page: Page) -> list[str]:
    return [job.id for job in page.jobs]


async def everything(
    lists: JobLists, status: JobStatus, limit: int, tenant: str = MINE
) -> list[str]:
    """All pages, one behind the other."""
    found, cursor = [], None
    while True:
        page = await lists.jobs(status, tenant=tenant, limit=limit, cursor=cursor)
        assert len(page.jobs) <= limit
        found += ids(page)
        if page.cursor is None:
            return found
        cursor = page.cursor


async def bury(queue: JobQueue, redis: Redis, *names: str, tenant: str = MINE) -> None:
    strict = with_options(queue, redis, max_attempts=1)
    await strict.submit_many([NewJob(request(name), name, tenant) for name in names])
    for job in await take(strict):
        await strict.fail(job.fence, job.attempt, failed(job.id))


async def test_each_status_lists_its_jobs_of_one_tenant(
    queue: JobQueue, redis: Redis, lists: JobLists
) -> None:
    await put(queue, "done1", "done2", "gone")
    await queue.cancel("gone")
    for job in await take(queue):
        await queue.complete([(job.fence, success(job.id))])
    await put(queue, "runs")
    await take(queue)
    await put(queue, "b1", priority="batch")
    await put(queue, "n1", "n2")
    await queue.submit_many([NewJob(request(), "theirs", "acme")])

    assert await everything(lists, JobStatus.QUEUED, 2) == ["n1", "n2", "b1"]
    assert await everything(lists, JobStatus.RUNNING, 2) == ["runs"]
    assert set(await everything(lists, JobStatus.SUCCEEDED, 1)) == {"done1", "done2"}
    assert await everything(lists, JobStatus.CANCELLED, 2) == ["gone"]
    assert await everything(lists, JobStatus.FAILED, 2) == []
    assert await everything(lists, JobStatus.QUEUED, 2, "acme") == ["theirs"]
    assert await everything(lists, JobStatus.SUCCEEDED, 2, "acme") == []
    [runs] = (await lists.jobs(JobStatus.RUNNING, tenant=MINE)).jobs
    assert (runs.status, runs.attempts, runs.finished_ms) == (JobStatus.RUNNING, 1, None)
    assert runs.claimed_ms is not None


async def test_jobs_outside_the_lanes_are_queued_too(
    queue: JobQueue, redis: Redis, lists: JobLists
) -> None:
    slow = with_options(queue, redis, retry_delay_s=60.0)
    await put(slow, "later", "back1", "back2")
    for job in await take(slow):
        if job.id == "later":
            await slow.fail(job.fence, job.attempt, failed(job.id))
        else:
            await slow.suspect([(job.fence, failed(job.id))])
    assert set(await everything(lists, JobStatus.QUEUED, 1)) == {"later", "back1", "back2"}


async def test_pages_hold_while_jobs_come_and_go(queue: JobQueue, lists: JobLists) -> None:
    names = [f"j{i:04}" for i in range(LOOK + 50)]
    await put(queue, *names)
    first = await lists.jobs(JobStatus.QUEUED, tenant=MINE, limit=10)
    # The one that the cursor names leaves, and others come behind and before it.
    await queue.cancel(ids(first)[-1])
    await put(queue, "new")
    await put(queue, "urgent", priority="interactive")
    rest = await lists.jobs(JobStatus.QUEUED, tenant=MINE, limit=500, cursor=first.cursor)
    assert ids(first) + ids(rest) == [*names, "new"]
    assert rest.cursor is None


async def test_the_index_of_the_ended_is_bounded(
    queue: JobQueue, redis: Redis, lists: JobLists
) -> None:
    short = with_options(queue, redis, listed_max=3)
    await put(short, *(f"j{i}" for i in range(5)), stream=False)
    for job in await take(short):
        await short.complete([(job.fence, success(job.id))])
    assert len(await everything(lists, JobStatus.SUCCEEDED, 2)) == 3
    assert await redis.pttl(queue.keys.ended(MINE)) > 0
    # What is not listed any more is not forgotten; its result lives as long as the others.
    for i in range(5):
        assert await redis.exists(queue.keys.result(f"j{i}"))
        await redis.delete(queue.keys.job(f"j{i}"), queue.keys.result(f"j{i}"))
    await redis.delete(queue.keys.ended(MINE))


async def test_dead_letters_with_their_bodies(
    queue: JobQueue, redis: Redis, lists: JobLists
) -> None:
    await bury(queue, redis, "a", "b")
    await bury(queue, redis, "theirs", tenant="acme")
    await put(queue, "alive")

    assert set(ids(await lists.dead(tenant=MINE))) == {"a", "b"}
    assert set(ids(await lists.dead())) == {"a", "b", "theirs"}
    first = await lists.dead(tenant=MINE, limit=1)
    second = await lists.dead(tenant=MINE, limit=1, cursor=first.cursor)
    assert {*ids(first), *ids(second)} == {"a", "b"}
    job, body = await lists.dead_letter("a", tenant=MINE)
    assert (job.status, body) == (JobStatus.FAILED, request("a"))
    assert job.error is not None
    for name, tenant in (("theirs", MINE), ("alive", MINE), ("none", None)):
        with pytest.raises(JobNotFoundError):
            await lists.dead_letter(name, tenant=tenant)

    await queue.forget_dead("a")
    await queue.forget_dead("none")
    assert ids(await lists.dead(tenant=MINE)) == ["b"]
    with pytest.raises(JobNotFoundError):
        await lists.dead_letter("a")
    await redis.delete(queue.keys.body("a"))


@pytest.mark.parametrize(
    "cursor", ["", "x", "9~1~a", "0~1~", "0~-1~a", "0~1~a b", "0~1~" + "a" * 65]
)
async def test_what_is_no_cursor(lists: JobLists, cursor: str) -> None:
    with pytest.raises(InvalidRequestError, match="cursor"):
        await lists.jobs(JobStatus.SUCCEEDED, tenant=MINE, cursor=cursor)
