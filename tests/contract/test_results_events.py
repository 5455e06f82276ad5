"""What a job says as it runs: the stream, its replay, and the two channels."""

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest
from redis.asyncio import Redis

from millpond.errors import InvalidRequestError
from millpond.messages import EventType, JobEvent, JobStatus
from millpond.queue.claims import ClaimedJob, Commit
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import REPLAY_PAGE, Results
from tests.contract.jobs import (
    delta,
    failed,
    lease_over,
    put,
    request,
    success,
    take,
    take_one,
    with_options,
)


async def collect(events: AsyncIterator[JobEvent], limit_s: float = 5.0) -> list[JobEvent]:
    async with asyncio.timeout(limit_s):
        return [event async for event in events]


async def write(queue: JobQueue, id: str, *texts: str) -> None:
    """Run the job from claim to end, with these deltas."""
    job = await take_one(queue)
    offset = 0
    for text in texts:
        assert await queue.emit([delta(job, text, offset)]) == [Commit.STORED]
        offset += len(text)
    await queue.complete([(job.fence, success(id, "".join(texts)))])


async def test_replay_of_an_ended_job(queue: JobQueue, results: Results) -> None:
    await put(queue, "a")
    await write(queue, "a", "one ", "two ", 'thr"ee é🎉\n')
    events = await collect(results.subscribe("a"))
    assert [e.type for e in events] == ["started", "delta", "delta", "delta", "finished"]
    assert [e.offset for e in events[1:4]] == [0, 4, 8]
    text = "".join(e.text for e in events)
    assert events[-1].result is not None
    assert events[-1].result.text == text
    assert {e.attempt for e in events} == {1}
    assert {e.id for e in events} == {"a"}
    assert all(e.event_id for e in events)


async def test_reasoning_is_counted_apart_from_the_text(queue: JobQueue, results: Results) -> None:
    """What is sent again is known by its own offset, and a second attempt begins at 0 with both."""
    await put(queue, "a")
    for attempt in (1, 2):
        job = await take_one(queue)
        thought = JobEvent(type=EventType.REASONING, id="a", attempt=attempt, text="hm ", offset=0)
        more = thought.model_copy(update={"text": "so", "offset": 3})
        said = JobEvent(type=EventType.DELTA, id="a", attempt=attempt, text="4", offset=0)
        pieces = [(job.fence, event) for event in (thought, more, said)]
        assert await queue.emit(pieces) == [Commit.STORED] * 3
        assert await queue.emit(pieces) == [Commit.KNOWN] * 3
        if attempt == 1:
            await queue.release([("a", job.fence)])
    await queue.complete([(job.fence, success("a", "4"))])
    events = await collect(results.subscribe("a"))
    told = [(str(event.type), event.offset, event.text) for event in events if event.text]
    assert told == [("reasoning", 0, "hm "), ("reasoning", 3, "so"), ("delta", 0, "4")] * 2


async def test_replay_after_an_event(queue: JobQueue, results: Results) -> None:
    await put(queue, "a")
    await write(queue, "a", "one ", "two ", "three ")
    events = await collect(results.subscribe("a"))
    for i in range(len(events) - 1):
        assert await collect(results.subscribe("a", events[i].event_id)) == events[i + 1 :]


async def test_after_the_last_event_there_is_still_the_end(
    queue: JobQueue, results: Results
) -> None:
    await put(queue, "a")
    await write(queue, "a")
    last = (await collect(results.subscribe("a")))[-1]
    [again] = await collect(results.subscribe("a", last.event_id))
    assert again.result == last.result


async def test_a_replay_of_several_pages(queue: JobQueue, results: Results) -> None:
    await put(queue, "a")
    job = await take_one(queue)
    number = REPLAY_PAGE * 2 + 7
    await queue.emit([delta(job, "x", i) for i in range(number)])
    await queue.complete([(job.fence, success("a"))])
    events = await collect(results.subscribe("a"))
    assert [e.offset for e in events[1:-1]] == list(range(number))


async def test_live_and_replayed_are_the_same_events(queue: JobQueue, results: Results) -> None:
    await put(queue, "a")
    live = asyncio.create_task(collect(results.subscribe("a")))
    late = results.subscribe("a")
    job = await take_one(queue)
    await queue.emit([delta(job, "one ")])
    seen = [await anext(late), await anext(late)]  # joins in the middle
    for i in range(50):
        await queue.emit([delta(job, f"{i:04}", 4 + 4 * i)])
        await asyncio.sleep(0)
    await queue.complete([(job.fence, success("a"))])
    seen += await collect(late)
    replayed = await collect(results.subscribe("a"))
    assert await live == replayed
    assert seen == replayed


async def test_a_delta_that_comes_again_is_written_once(queue: JobQueue, results: Results) -> None:
    """Also after later ones, and beside another choice's: its answer was lost on the way."""
    await put(queue, "a")
    await queue.submit(request(n=2), id="two", tokens=10)
    job, two = await take(queue)
    one = delta(job, "éé ")
    assert await queue.emit([one]) == [Commit.STORED]
    assert await queue.emit([one, delta(job, "two ", 3)]) == [Commit.KNOWN, Commit.STORED]
    assert await queue.emit([one]) == [Commit.KNOWN]
    choices = [choice_delta(two, index, "text") for index in (0, 1)]
    assert await queue.emit(choices) == [Commit.STORED] * 2
    assert await queue.emit(choices) == [Commit.KNOWN] * 2
    # Another attempt begins anew.
    await queue.release([("a", job.fence), ("two", two.fence)])
    job, two = await take(queue)
    again = [delta(job, "1"), *(choice_delta(two, index, "2") for index in (0, 1))]
    assert await queue.emit(again) == [Commit.STORED] * 3
    await queue.complete([(job.fence, success("a")), (two.fence, success("two"))])
    for id, said in (("a", ["éé ", "two ", "1"]), ("two", ["text", "text", "2", "2"])):
        events = await collect(results.subscribe(id))
        assert [event.text for event in events if event.text] == said


def choice_delta(job: ClaimedJob, index: int, text: str) -> tuple[int, JobEvent]:
    fence, event = delta(job, text)
    return fence, event.model_copy(update={"index": index})


async def test_resets_between_attempts(queue: JobQueue, redis: Redis, results: Results) -> None:
    await put(queue, "a")
    brief = with_options(queue, redis, lease_s=0.03, retry_delay_s=0.0)
    job = await take_one(brief)
    await queue.emit([delta(job, "void")])
    await lease_over(redis, queue)
    await brief.reap()
    job = await take_one(brief)
    await brief.fail(job.fence, job.attempt, failed("a"))
    job = await take_one(queue)
    await queue.release([("a", job.fence)])
    await write(queue, "a", "kept")
    events = await collect(results.subscribe("a"))
    told = [(str(e.type), e.attempt, e.reason or e.text) for e in events]
    assert told == [
        ("started", 1, ""),
        ("delta", 1, "void"),
        ("reset", 1, "lease_expired"),
        ("started", 1, ""),
        ("reset", 1, "failed"),
        ("started", 2, ""),
        ("reset", 2, "released"),
        ("started", 2, ""),
        ("delta", 2, "kept"),
        ("finished", 2, ""),
    ]


async def test_a_job_that_never_ran_has_one_event(queue: JobQueue, results: Results) -> None:
    await put(queue, "a")
    live = asyncio.create_task(collect(results.subscribe("a")))
    await asyncio.sleep(0)
    await queue.cancel("a")
    for events in (await live, await collect(results.subscribe("a"))):
        assert [e.type for e in events] == [EventType.FINISHED]
        assert events[0].result is not None
        assert events[0].result.status is JobStatus.CANCELLED


async def test_a_job_without_a_stream(queue: JobQueue, redis: Redis, results: Results) -> None:
    await put(queue, "a", stream=False)
    live = asyncio.create_task(collect(results.subscribe("a")))
    job = await take_one(queue)
    assert await queue.emit([delta(job, "nobody keeps this")]) == [Commit.KNOWN]
    await queue.complete([(job.fence, success("a"))])
    assert (await live)[-1].type is EventType.FINISHED
    [only] = await collect(results.subscribe("a"))
    assert only.type is EventType.FINISHED
    assert not await redis.exists(queue.keys.events("a"))
    assert (await results.get("a")).streams is False


async def test_the_end_is_told_when_the_stream_is_gone(
    queue: JobQueue, redis: Redis, results: Results
) -> None:
    await put(queue, "a")
    await write(queue, "a", "text")
    await redis.delete(queue.keys.events("a"))
    [only] = await collect(results.subscribe("a"))
    assert only.result is not None
    assert only.result.text == "text"


async def test_the_stream_is_bounded_and_ends(queue: JobQueue, redis: Redis) -> None:
    short = with_options(queue, redis, event_maxlen=100, event_ttl_s=30.0)
    await put(short, "a")
    job = await take_one(short)
    for start in range(0, 1_000, 50):
        await short.emit([delta(job, "x", start + i) for i in range(50)])
    # MAXLEN is approximate: whole nodes of the stream are dropped.
    assert await redis.xlen(queue.keys.events("a")) < 400
    assert await redis.pttl(queue.keys.events("a")) == -1
    await short.complete([(job.fence, success("a"))])
    assert 20_000 < await redis.pttl(queue.keys.events("a")) <= 30_000


@pytest.mark.parametrize("after", ["x", "", "-1", "1-", "$", "+", "1-1-1", "9" * 30, "1 2"])
async def test_what_is_no_event_id_is_refused(
    queue: JobQueue, results: Results, after: str
) -> None:
    await put(queue, "a")
    with pytest.raises(InvalidRequestError) as caught:
        await anext(results.subscribe("a", after))
    assert caught.value.field == "after"


async def messages(redis: Redis, channel: str, number: int) -> "asyncio.Task[list[bytes]]":
    """A task that ends with the next messages of the channel; it is listening by now."""
    pubsub = redis.pubsub()
    await pubsub.subscribe(channel)
    await pubsub.get_message(timeout=5.0)

    async def read() -> list[bytes]:
        found: list[bytes] = []
        async with asyncio.timeout(5):
            while len(found) < number:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=1.0)
                if message is not None:
                    found.append(message["data"])
        await pubsub.aclose()
        return found

    return asyncio.create_task(read())


async def test_the_jobs_channel_carries_what_the_stream_does(queue: JobQueue, redis: Redis) -> None:
    await put(queue, "a", "b")
    heard = await messages(redis, queue.keys.events("a"), 3)
    job, _ = await take(queue)
    await queue.emit([delta(job, "text")])
    await queue.complete([(job.fence, success("a"))])
    entries = await redis.xrange(queue.keys.events("a"))
    published = [orjson.loads(message) for message in await heard]
    for (entry, fields), message in zip(entries, published, strict=True):
        assert message.pop("event_id") == entry.decode()
        assert message == orjson.loads(fields[b"event"])
        assert message["v"] == 1


async def test_the_queues_channel_tells_every_change_briefly(queue: JobQueue, redis: Redis) -> None:
    heard = await messages(redis, queue.keys.channel, 5)
    await put(queue, "a", "b")
    await queue.cancel("b")
    job = await take_one(queue)
    await queue.emit([delta(job, "deltas are not told here")])
    await queue.release([("a", job.fence)])
    await write(queue, "a", "text " * 1_000)
    told = [orjson.loads(message) for message in await heard]
    assert [(m["id"], m["type"], m.get("status") or m.get("reason")) for m in told] == [
        ("b", "finished", "cancelled"),
        ("a", "started", None),
        ("a", "reset", "released"),
        ("a", "started", None),
        ("a", "finished", "succeeded"),
    ]
    assert max(len(message) for message in await heard) < 200
