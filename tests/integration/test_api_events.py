"""A job's events over server-sent events: live, replayed, resumed, and ended in every way."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from millpond.local.server import RedisServer
from millpond.messages import EventType, JobEvent
from millpond.queue.claims import ClaimedJob, Commit
from tests.integration.conftest import RunningApi, StartApi, listening

LIMIT_S = 10.0


async def events(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """What an EventSource would dispatch: id, event and the parsed data."""
    fields: dict[str, Any] = {}
    async for line in answer.aiter_lines():
        if not line:
            if "data" in fields:
                yield fields | {"data": json.loads(fields["data"])}
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


async def read_all(api: RunningApi, id: str, **kwargs: Any) -> list[dict[str, Any]]:
    async with (
        asyncio.timeout(LIMIT_S),
        api.http.stream("GET", f"/v1/jobs/{id}/events", **kwargs) as answer,
    ):
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [event async for event in events(answer)]


async def say(api: RunningApi, job: ClaimedJob, text: str, offset: int) -> None:
    delta = JobEvent(type=EventType.DELTA, id=job.id, attempt=job.attempt, text=text, offset=offset)
    assert await api.queue.emit([(job.fence, delta)]) == [Commit.STORED]


async def test_a_job_is_followed_live_to_its_end(api: RunningApi) -> None:
    id = await api.submit()
    async with api.http.stream("GET", f"/v1/jobs/{id}/events") as answer:
        stream = events(answer)
        job = await api.claim()
        started = await anext(stream)
        await say(api, job, "Hel", 0)
        first = await anext(stream)
        await say(api, job, "lo", 3)
        second = await anext(stream)
        await api.complete(job, "Hello")
        finished = await anext(stream)
        assert [event async for event in stream] == []

    assert started["event"] == "started"
    assert started["data"] == {"type": "started", "id": id, "attempt": 1}
    common = {"type": "delta", "id": id, "attempt": 1}
    assert first["data"] == common | {"text": "Hel", "offset": 0}
    assert second["data"] == common | {"text": "lo", "offset": 3}
    assert finished["event"] == "finished"
    assert finished["data"]["result"]["text"] == "Hello"
    ids = [event["id"] for event in (started, first, second, finished)]
    assert len(set(ids)) == 4
    await listening(api, id, wanted=False)


async def test_a_finished_job_is_replayed_whole_and_from_any_place(api: RunningApi) -> None:
    id = await api.submit()
    job = await api.claim()
    await say(api, job, "Hel", 0)
    await say(api, job, "lo", 3)
    await api.complete(job, "Hello")

    whole = await read_all(api, id)
    rest = await read_all(api, id, headers={"Last-Event-ID": whole[1]["id"]})
    same = await read_all(api, id, params={"after": whole[1]["id"]})
    header_first = await read_all(
        api, id, params={"after": whole[2]["id"]}, headers={"Last-Event-ID": whole[1]["id"]}
    )
    after_all = await read_all(api, id, headers={"Last-Event-ID": whole[3]["id"]})

    assert [event["event"] for event in whole] == ["started", "delta", "delta", "finished"]
    assert rest == same == header_first == whole[2:]
    assert [event["event"] for event in after_all] == ["finished"]
    assert after_all[0]["data"]["result"]["text"] == "Hello"


async def test_a_new_attempt_sends_reset(api: RunningApi) -> None:
    id = await api.submit()
    job = await api.claim()
    await say(api, job, "lost", 0)
    await api.queue.release([(job.id, job.fence)])
    again = await api.claim()
    await say(api, again, "kept", 0)
    await api.complete(again, "kept")

    found = await read_all(api, id)

    kinds = [event["event"] for event in found]
    assert kinds == ["started", "delta", "reset", "started", "delta", "finished"]
    assert found[2]["data"]["reason"] == "released"


async def test_a_job_without_a_stream_still_tells_its_end(api: RunningApi) -> None:
    id = await api.submit(stream=False)
    await api.complete(await api.claim(), "quiet")

    [finished] = await read_all(api, id)

    assert finished["event"] == "finished"
    assert "id" not in finished
    assert finished["data"]["result"]["text"] == "quiet"


async def test_text_that_looks_like_the_protocol_stays_data(api: RunningApi) -> None:
    nasty = 'a\n\ndata: {"x":1}\r\nevent: finished\r\n\r\n\u2028\u2029\x85 : ü 😀'
    id = await api.submit()
    job = await api.claim()
    await say(api, job, nasty, 0)
    await api.complete(job, nasty)

    _, delta, finished = await read_all(api, id)

    assert delta["data"]["text"] == finished["data"]["result"]["text"] == nasty


async def test_a_client_that_leaves_frees_its_subscription(api: RunningApi) -> None:
    id = await api.submit()
    async with api.http.stream("GET", f"/v1/jobs/{id}/events") as answer:
        await api.claim()
        assert (await anext(events(answer)))["event"] == "started"

    await listening(api, id, wanted=False)


async def test_a_long_poll_that_is_left_frees_its_subscription(api: RunningApi) -> None:
    id = await api.submit()
    poll = asyncio.create_task(api.http.get(f"/v1/jobs/{id}?wait=60"))
    await listening(api, id)

    poll.cancel()

    await listening(api, id, wanted=False)


async def test_stopping_ends_streams_and_long_polls_cleanly(
    redis_server: RedisServer, start_api: StartApi
) -> None:
    async with start_api(redis_server.url) as api:
        followed, polled = await api.submit("a"), await api.submit("b")
        poll = asyncio.create_task(api.http.get(f"/v1/jobs/{polled}?wait=60"))
        async with api.http.stream("GET", f"/v1/jobs/{followed}/events") as answer:
            await api.claim()
            stream = events(answer)
            await anext(stream)
            async with asyncio.timeout(3):
                api.server.should_exit = True
                assert [event async for event in stream] == []
                assert (await poll).json()["status"] == "queued"
                await api.stopped


async def test_when_redis_dies_the_stream_ends_so_that_the_client_comes_back(
    redis_server: RedisServer, start_api: StartApi
) -> None:
    async with start_api(redis_server.url) as api:
        id = await api.submit()
        async with api.http.stream("GET", f"/v1/jobs/{id}/events") as answer:
            job = await api.claim()
            stream = events(answer)
            started = await anext(stream)
            await redis_server.stop()
            async with asyncio.timeout(LIMIT_S):
                assert [event async for event in stream] == []

        await redis_server.start()
        await api.complete(job, "after all")
        rest = await read_all(api, id, headers={"Last-Event-ID": started["id"]})
        assert [event["event"] for event in rest] == ["finished"]
