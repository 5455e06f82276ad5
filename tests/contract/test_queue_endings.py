"""How jobs end: completed, failed, cancelled, expired; once, and for ever."""

import asyncio

import pytest
from redis.asyncio import Redis

from millpond.messages import JobResult, JobStatus
from millpond.queue.claims import Commit, Lease
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from tests.contract.invariants import check_invariants, check_only_ttl_left
from tests.contract.jobs import (
    a_worker,
    failed,
    ids,
    put,
    request,
    server_ms,
    success,
    take,
    take_one,
    until,
    with_options,
)


async def stored(results: Results, id: str) -> JobResult:
    result = (await results.get(id)).result
    assert result is not None
    return result


async def test_complete_stores_the_result_as_it_was_given(
    queue: JobQueue, redis: Redis, results: Results
) -> None:
    await put(queue, "a")
    job = await take_one(queue)
    given = success("a", 'text "quoted" \\ é漢🎉\n\u2028', token_ids=[1, 2], metadata={"k": "v"})
    assert await queue.complete([(job.fence, given)]) == [Commit.STORED]
    result = await stored(results, "a")
    assert result.finished_ms is not None
    assert abs(result.finished_ms - await server_ms(redis)) < 5_000
    assert result.model_copy(update={"finished_ms": None}) == given


async def test_the_first_terminal_state_wins(queue: JobQueue, results: Results) -> None:
    await put(queue, "a")
    job = await take_one(queue)
    assert await queue.complete([(job.fence, success("a", "first"))]) == [Commit.STORED]
    before = await results.get("a")
    assert await queue.complete([(job.fence, success("a", "second"))]) == [Commit.KNOWN]
    assert await queue.complete([(job.fence + 1, success("a", "other"))]) == [Commit.LOST]
    assert await queue.fail(job.fence, job.attempt, failed("a")) is Commit.KNOWN
    assert await queue.cancel("a") is JobStatus.SUCCEEDED
    assert await queue.release([("a", job.fence)]) == 0
    assert await results.get("a") == before


async def test_complete_many(queue: JobQueue) -> None:
    await put(queue, "a", "b", "c")
    one, two, three = await take(queue)
    await queue.complete([(two.fence, success("b"))])
    answers = await queue.complete(
        [
            (one.fence, success("a")),
            (two.fence, success("b")),
            (three.fence + 9, success("c")),
            (1, success("unknown")),
        ]
    )
    assert answers == [Commit.STORED, Commit.KNOWN, Commit.LOST, Commit.LOST]
    assert await queue.complete([]) == []


async def test_concurrent_repeats_of_complete_store_once(queue: JobQueue) -> None:
    await put(queue, "a")
    job = await take_one(queue)
    calls = [queue.complete([(job.fence, success("a", f"{i}"))]) for i in range(20)]
    answers = [answer for [answer] in await asyncio.gather(*calls)]
    assert sorted(answers) == [Commit.KNOWN] * 19 + [Commit.STORED]


async def test_fail_backs_off_then_goes_back_to_its_place(
    queue: JobQueue, redis: Redis, results: Results
) -> None:
    await put(queue, "a", "b")
    job = await take_one(queue)
    assert await queue.fail(job.fence, job.attempt, failed("a")) is Commit.RETRY
    assert await queue.fail(job.fence, job.attempt, failed("a")) is Commit.LOST
    view = await results.get("a")
    assert (view.status, view.attempts) == (JobStatus.QUEUED, 1)
    assert view.retry_in_ms is not None
    assert 0 <= view.retry_in_ms <= 20

    async def promoted() -> bool:
        return (await queue.reap())[1] == 1

    await until(promoted)
    assert (await results.get("a")).retry_in_ms is None
    again = await take(queue)
    assert ids(again) == ["a", "b"]
    assert again[0].attempt == 2


async def test_a_claim_promotes_by_itself(queue: JobQueue) -> None:
    await put(queue, "a")
    job = await take_one(queue)
    await queue.fail(job.fence, job.attempt, failed("a"))

    async def claimed() -> list[str]:
        return ids(await take(queue))

    assert await until(claimed) == ["a"]


async def test_retries_due_together_keep_their_order(queue: JobQueue, redis: Redis) -> None:
    await put(queue, "first", "second", "third")
    jobs = await take(queue)
    for job, delay_s in zip(jobs, (0.001, 0.002, 0.003), strict=True):
        patient = with_options(queue, redis, retry_delay_s=delay_s)
        await patient.fail(job.fence, job.attempt, failed(job.id))
    last = await redis.zrange(queue.keys["delayed"], -1, -1, withscores=True)

    async def due() -> bool:
        return await server_ms(redis) >= last[0][1]

    await until(due)
    assert ids(await take(queue)) == ["first", "second", "third"]


@pytest.mark.parametrize(("attempt", "delay_s"), [(1, 1.0), (2, 2.0), (3, 4.0), (9, 60.0)])
async def test_backoff_doubles_up_to_a_limit(
    queue: JobQueue, redis: Redis, attempt: int, delay_s: float
) -> None:
    patient = with_options(queue, redis, retry_delay_s=1.0, retry_delay_max_s=60.0)
    await put(patient, "a")
    job = await take_one(patient)
    before = await server_ms(redis)
    await patient.fail(job.fence, attempt, failed("a"))
    due = await redis.zscore(queue.keys["delayed"], "a")
    assert due is not None
    assert 0 <= due - before - delay_s * 1000 <= 1_000


async def test_the_last_failure_is_stored_and_the_body_kept(
    queue: JobQueue, redis: Redis, results: Results
) -> None:
    quick = with_options(queue, redis, retry_delay_s=0.0)
    await put(quick, "a")
    for expected in (Commit.RETRY, Commit.RETRY, Commit.BURIED):
        job = await take_one(quick)
        assert await quick.fail(job.fence, job.attempt, failed("a", f"{job.attempt}")) is expected
    assert await quick.fail(job.fence, job.attempt, failed("a")) is Commit.KNOWN
    result = await stored(results, "a")
    assert result.error is not None
    assert result.error.message == "3"
    assert await redis.zrange(queue.keys.dead, 0, -1) == [b"a"]
    assert await redis.get(queue.keys.body("a")) == request().to_json()
    assert await take(quick) == []


async def test_the_dead_letter_list_is_bounded(queue: JobQueue, redis: Redis) -> None:
    strict = with_options(queue, redis, max_attempts=1, dead_max=3)
    await put(strict, *(f"j{i}" for i in range(5)))
    for job in await take(strict):
        assert await strict.fail(job.fence, job.attempt, failed(job.id)) is Commit.BURIED
    assert await redis.zrange(queue.keys.dead, 0, -1) == [b"j2", b"j3", b"j4"]
    for i in range(5):  # what fell off the list still has its time to live
        assert await redis.pttl(queue.keys.body(f"j{i}")) > 0
    await redis.delete(*(queue.keys.body(f"j{i}") for i in range(2)))


async def test_failing_a_job_to_be_cancelled_cancels_it(queue: JobQueue, results: Results) -> None:
    await put(queue, "a")
    job = await take_one(queue)
    await queue.cancel("a")
    assert await queue.fail(job.fence, job.attempt, failed("a")) is Commit.STORED
    assert await queue.fail(job.fence, job.attempt, failed("a")) is Commit.KNOWN
    assert (await results.get("a")).status is JobStatus.CANCELLED


async def test_cancel_queued(queue: JobQueue, results: Results) -> None:
    await put(queue, "a", metadata={"k": "v"})
    assert await queue.cancel("a") is JobStatus.CANCELLED
    assert await queue.cancel("a") is JobStatus.CANCELLED
    result = await stored(results, "a")
    assert (result.status, result.finish_reason) == (JobStatus.CANCELLED, "cancelled")
    assert result.metadata == {"k": "v"}
    assert await queue.depth() == 0
    assert await take(queue) == []


async def test_cancel_running_flags_it(queue: JobQueue, results: Results) -> None:
    await put(queue, "a")
    job = await take_one(queue)
    assert await queue.cancel("a") is JobStatus.RUNNING
    assert (await results.get("a")).cancelling is True
    assert await queue.renew([("a", job.fence)]) == [Lease.CANCELLED]
    ended = JobResult(id="a", status=JobStatus.CANCELLED, finish_reason="cancelled", text="so far")
    assert await queue.complete([(job.fence, ended)]) == [Commit.STORED]
    view = await results.get("a")
    assert (view.status, view.cancelling) == (JobStatus.CANCELLED, False)
    assert view.result is not None
    assert view.result.text == "so far"


async def test_a_result_that_beats_the_cancel_stands(queue: JobQueue, results: Results) -> None:
    await put(queue, "a")
    job = await take_one(queue)
    await queue.cancel("a")
    assert await queue.complete([(job.fence, success("a"))]) == [Commit.STORED]
    assert (await results.get("a")).status is JobStatus.SUCCEEDED


async def test_cancel_while_waiting_for_a_retry(queue: JobQueue, redis: Redis) -> None:
    slow = with_options(queue, redis, retry_delay_s=60.0)
    await put(slow, "a")
    job = await take_one(slow)
    await slow.fail(job.fence, job.attempt, failed("a"))
    assert await slow.cancel("a") is JobStatus.CANCELLED
    assert await redis.zcard(queue.keys["delayed"]) == 0
    assert await slow.depth() == 0


async def test_cancel_unknown_and_of_another_tenant(queue: JobQueue, results: Results) -> None:
    await queue.submit(request(), id="a", tenant="one")
    assert await queue.cancel("b") is None
    assert await queue.cancel("a", tenant="two") is None
    assert (await results.get("a")).status is JobStatus.QUEUED
    assert await queue.cancel("a", tenant="one") is JobStatus.CANCELLED


async def test_a_queued_job_expires_by_reaping(
    queue: JobQueue, redis: Redis, results: Results
) -> None:
    await put(queue, "a", deadline_s=0.02)
    await put(queue, "b", deadline_s=60.0)

    async def expired() -> bool:
        return (await queue.reap())[2] == 1

    await until(expired)
    assert (await stored(results, "a")).status is JobStatus.EXPIRED
    assert (await results.get("b")).status is JobStatus.QUEUED


async def test_a_running_job_past_its_deadline_expires_when_put_back(
    queue: JobQueue, redis: Redis, results: Results
) -> None:
    await put(queue, "a", deadline_s=0.2)
    job = await take_one(queue)

    async def told() -> bool:
        return await queue.renew([("a", job.fence)]) == [Lease.EXPIRED]

    await until(told)
    assert await queue.reap() == (0, 0, 0, 0)  # its worker is alive and ends it
    await queue.release([("a", job.fence)])
    assert (await queue.reap())[2] == 1
    assert (await stored(results, "a")).status is JobStatus.EXPIRED


async def test_everything_ends_with_a_time_to_live(queue: JobQueue, redis: Redis) -> None:
    strict = with_options(queue, redis, max_attempts=1)
    await put(strict, "cancelled", "done", "failed", "silent", "flagged")
    await put(strict, "expired", deadline_s=0.01)
    await put(strict, "quiet", stream=False)
    await strict.cancel("cancelled")
    held = {}

    async def all_but_the_expired() -> bool:
        held.update({job.id: job for job in await take(strict)})
        return len(await redis.zrange(queue.keys["deadlines"], 0, -1)) == 0 or "expired" in held

    await until(all_but_the_expired)
    if "expired" in held:
        late = JobResult(id="expired", status=JobStatus.EXPIRED, finish_reason="cancelled")
        await strict.complete([(held.pop("expired").fence, late)])
    await strict.fail(held["failed"].fence, 1, failed("failed"))
    held.pop("failed")
    await strict.complete([(job.fence, success(id)) for id, job in held.items()])
    await strict.beat("w", a_worker())
    assert await take(strict) == []
    shot = await check_invariants(redis, queue.keys)
    check_only_ttl_left(shot)
    assert shot.ids("job") == shot.ids("result")
    assert shot.ids("body") == {"failed"}
    for id in shot.ids("job"):
        assert 50_000 < shot.ttl(queue.keys.result(id)) <= 60_000
        assert 50_000 < shot.ttl(queue.keys.job(id)) <= 60_000
    assert "quiet" not in shot.ids("events")


async def test_results_vanish_after_their_time(queue: JobQueue, redis: Redis) -> None:
    brief = with_options(queue, redis, result_ttl_s=0.05, event_ttl_s=0.05)
    await put(brief, "a", "b")
    await brief.cancel("b")
    job = await take_one(brief)
    await brief.complete([(job.fence, success("a"))])

    async def vanished() -> bool:
        return not await redis.keys("*[ab]")

    await until(vanished)
    assert (await brief.submit(request("new"), id="a")).created is True  # the id is free again


async def test_an_id_used_again_after_it_was_cancelled(queue: JobQueue, redis: Redis) -> None:
    brief = with_options(queue, redis, result_ttl_s=0.03, event_ttl_s=0.03)
    await put(brief, "a")
    await brief.cancel("a")

    async def vanished() -> bool:
        return not await redis.exists(queue.keys.job("a"))

    await until(vanished)
    await put(queue, "a")
    assert ids(await take(queue)) == ["a"]
    assert await take(queue) == []
