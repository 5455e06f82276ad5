"""Submitting: idempotent, bounded, refused by name."""

import asyncio

import pytest
from redis.asyncio import Redis

from millpond.errors import (
    IdempotencyConflictError,
    InvalidRequestError,
    QueueFullError,
    TenantStorageFullError,
)
from millpond.messages import JobRequest, JobStatus, job_id_from_key
from millpond.queue.job_queue import JobQueue
from millpond.queue.keys import Keys
from millpond.queue.submission import NewJob, Submission
from tests.contract.invariants import check_invariants
from tests.contract.jobs import (
    failed,
    ids,
    put,
    request,
    server_ms,
    success,
    take,
    take_one,
    with_options,
)


async def test_submit_stores_the_job_and_says_so(queue: JobQueue, redis: Redis) -> None:
    answer = await queue.submit(request("hi", metadata={"k": "v"}), id="a", tokens=7)
    assert answer == Submission("a", JobStatus.QUEUED, created=True)
    shot = await check_invariants(redis, queue.keys)
    record = shot.raw[queue.keys.job("a")]
    assert record["tokens"] == "7"
    assert record["tenant"] == "default"
    assert abs(int(record["created"]) - await server_ms(redis)) < 5_000
    stored = JobRequest.from_json(shot.raw[queue.keys.body("a")])
    assert stored == request("hi", metadata={"k": "v"})


async def test_an_id_is_made_when_none_is_given(queue: JobQueue) -> None:
    made = {(await queue.submit(request())).id for _ in range(5)}
    assert len(made) == 5
    assert set(ids(await take(queue))) == made


async def test_the_same_submit_again_changes_nothing(queue: JobQueue, redis: Redis) -> None:
    await queue.submit(request("hi"), id="a")
    before = (await check_invariants(redis, queue.keys)).raw
    answer = await queue.submit(request("hi"), id="a")
    assert answer == Submission("a", JobStatus.QUEUED, created=False)
    assert (await check_invariants(redis, queue.keys)).raw == before


async def test_a_repeat_tells_how_far_the_job_is(queue: JobQueue) -> None:
    await put(queue, "a")
    job = await take_one(queue)
    again = await queue.submit(request(), id="a", tokens=10)
    assert again == Submission("a", JobStatus.RUNNING, created=False)
    await queue.complete([(job.fence, success("a"))])
    again = await queue.submit(request(), id="a", tokens=10)
    assert again == Submission("a", JobStatus.SUCCEEDED, created=False)
    assert await take(queue) == []


async def test_concurrent_repeats_make_one_job(queue: JobQueue) -> None:
    id = job_id_from_key("default", "order-17")
    answers = await asyncio.gather(*(queue.submit(request(), id=id) for _ in range(30)))
    assert sum(answer.created for answer in answers) == 1
    assert await queue.depth() == 1


@pytest.mark.parametrize(
    "other",
    [{"prompt": "other"}, {"max_tokens": 5}, {"metadata": {"a": "b"}}, {"priority": "batch"}],
    ids=lambda fields: next(iter(fields)),
)
async def test_a_known_id_with_another_request_is_a_conflict(
    queue: JobQueue, other: dict[str, object]
) -> None:
    await queue.submit(request(), id="a")
    with pytest.raises(IdempotencyConflictError) as caught:
        await queue.submit(JobRequest.model_validate({"prompt": "hello", **other}), id="a")
    assert caught.value.job_id == "a"
    assert await queue.depth() == 1


async def test_another_tenant_cannot_take_over_an_id(queue: JobQueue) -> None:
    await queue.submit(request(), id="a", tenant="one")
    with pytest.raises(IdempotencyConflictError):
        await queue.submit(request(), id="a", tenant="two")


async def test_depth_limit(queue: JobQueue, redis: Redis) -> None:
    small = with_options(queue, redis, max_depth=2)
    await put(small, "a", "b")
    with pytest.raises(QueueFullError) as caught:
        await put(small, "c")
    assert (caught.value.depth, caught.value.limit) == (2, 2)
    assert (await small.submit(request(), id="a", tokens=10)).created is False  # not a new one
    await take_one(queue)
    await put(small, "c")  # running jobs do not count


async def test_depth_limit_is_exact_under_concurrent_submits(queue: JobQueue, redis: Redis) -> None:
    small = with_options(queue, redis, max_depth=25)

    async def submit_some(number: int) -> list[object]:
        jobs = [NewJob(request(), id=f"{number}-{i}") for i in range(7)]
        return list(await small.submit_many(jobs))

    answers = await asyncio.gather(*(submit_some(number) for number in range(10)))
    flat = [answer for some in answers for answer in some]
    assert sum(isinstance(answer, Submission) for answer in flat) == 25
    assert sum(isinstance(answer, QueueFullError) for answer in flat) == 45
    assert await queue.depth() == 25


async def test_waiting_retries_count_into_the_depth(queue: JobQueue, redis: Redis) -> None:
    slow = with_options(queue, redis, retry_delay_s=60.0)
    await put(slow, "a")
    job = await take_one(slow)
    await slow.fail(job.fence, job.attempt, failed("a"))
    assert await slow.depth() == 1


async def test_submit_many_answers_each_on_its_own(queue: JobQueue) -> None:
    await queue.submit(request("first"), id="a")
    answers = await queue.submit_many(
        [NewJob(request("first"), id="a"), NewJob(request("x"), id="a"), NewJob(request(), id="b")]
    )
    assert answers[0] == Submission("a", JobStatus.QUEUED, created=False)
    assert isinstance(answers[1], IdempotencyConflictError)
    assert answers[2] == Submission("b", JobStatus.QUEUED, created=True)
    assert await queue.submit_many([]) == []


@pytest.mark.parametrize("id", ["-a", "a b", "a\n", "a" * 65, "ä", 'a"', "a}", "../a", "a\0"])
async def test_bad_ids_are_refused(queue: JobQueue, id: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await queue.submit(request(), id=id)
    assert caught.value.field == "id"


@pytest.mark.parametrize("tenant", ["", "-a", "a b", "a\n", "a" * 33, "a:b"])
async def test_bad_tenants_are_refused(queue: JobQueue, tenant: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        await queue.submit(request(), tenant=tenant)
    assert caught.value.field == "tenant"


async def test_one_malformed_id_submits_nothing(queue: JobQueue) -> None:
    with pytest.raises(InvalidRequestError):
        await queue.submit_many([NewJob(request(), id="a"), NewJob(request(), id=" ")])
    assert await queue.depth() == 0


async def test_queues_do_not_see_each_other(queue: JobQueue, redis: Redis) -> None:
    other = JobQueue(redis, "other", queue.options)
    await put(other, "a")
    assert await take(queue) == []
    assert ids(await take(other)) == ["a"]
    async for key in redis.scan_iter(match=Keys("other")["job"].replace("job:", "*")):
        await redis.delete(key)


@pytest.mark.parametrize("prompt", ["é漢🎉", '"}{\\', "[1,2]\r\n", "a\u2028\u2029", "x" * 100_000])
async def test_any_text_comes_back_as_it_was(queue: JobQueue, prompt: str) -> None:
    await queue.submit(request(prompt, metadata={"note": prompt[:100]}), id="a")
    job = await take_one(queue)
    assert JobRequest.from_json(job.body) == request(prompt, metadata={"note": prompt[:100]})


async def test_what_is_stored_for_a_tenant_is_bounded(queue: JobQueue, redis: Redis) -> None:
    size = len(JobRequest(prompt="x" * 400).to_json())
    small = with_options(queue, redis, max_tenant_bytes=2 * size)

    async def submit(id: str, tenant: str = "acme", own: int | None = None) -> object:
        job = NewJob(JobRequest(prompt="x" * 400), id, tenant, tenant_bytes=own)
        [answer] = await small.submit_many([job])
        return answer

    assert isinstance(await submit("a"), Submission)
    assert isinstance(await submit("b"), Submission)
    refused = await submit("c")
    assert isinstance(refused, TenantStorageFullError)
    assert (refused.depth, refused.limit) == (2 * size, 2 * size)
    assert isinstance(await submit("d", tenant="other"), Submission)
    assert isinstance(await submit("e", own=3 * size), Submission), "its key allows more"
    assert isinstance(await submit("f", own=3 * size), TenantStorageFullError)
    assert isinstance(await submit("a"), Submission), "a known job is no new one"


async def test_a_result_counts_in_place_of_its_request(queue: JobQueue, redis: Redis) -> None:
    request = JobRequest(prompt="x" * 4_000)
    small = with_options(queue, redis, max_tenant_bytes=len(request.to_json()) + 1_000)
    await small.submit_many([NewJob(request, "a", "acme")])
    [refused] = await small.submit_many([NewJob(request, "b", "acme")])
    assert isinstance(refused, TenantStorageFullError)

    job = await take_one(queue)
    await queue.complete([(job.fence, success("a"))])

    [accepted] = await small.submit_many([NewJob(request, "b", "acme")])
    assert isinstance(accepted, Submission)
    stored = await redis.hgetall(queue.keys["stored"] + "acme")
    assert int(stored[b"bodies"]) == len(request.to_json())
    kept = await redis.strlen(queue.keys.result("a"))
    assert sum(int(v) for k, v in stored.items() if k != b"bodies") == kept


async def test_bytes_of_a_past_hour_are_forgotten(queue: JobQueue, redis: Redis) -> None:
    request = JobRequest(prompt="x")
    key = queue.keys["stored"] + "acme"
    await redis.hset(key, "1", 10**9)
    small = with_options(queue, redis, max_tenant_bytes=1_000)

    [accepted] = await small.submit_many([NewJob(request, "a", "acme")])

    assert isinstance(accepted, Submission)
    assert await redis.hkeys(key) == [b"bodies"]
