"""``/v1/queue/events``: the queue as its watchers see it, looked up once for all of them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest

from millpond.access.api_keys import Scope
from millpond.messages.worker_rows import RowNow, WorkerRows
from millpond.messages.worker_state import WorkerPhase, WorkerState
from millpond.queue.watching import QueueWatch
from tests.integration.conftest import RunningApi, make_key

PATH = "/v1/queue/events"
READY = WorkerState(
    state=WorkerPhase.READY, model="simulated", slots=4, latency_p50_ms=20.0, latency_p90_ms=90.0
)


class Watcher:
    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.aiter_lines()

    async def next(self, type: str) -> Any:
        """The data of the next event of this type."""
        async with asyncio.timeout(10):
            async for line in self._lines:
                if line == f"event: {type}":
                    return orjson.loads((await anext(self._lines)).removeprefix("data: "))
        raise AssertionError(f"the stream ended without {type}")


@contextlib.asynccontextmanager
async def watching(api: RunningApi, **options: Any) -> AsyncIterator[Watcher]:
    async with api.http.stream("GET", PATH, **options) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Watcher(answer)


async def test_the_queue_its_lanes_its_leases_and_the_rows(api: RunningApi) -> None:
    await api.queue.beat("w1", READY)
    for priority in ("normal", "normal", "batch"):
        await api.submit(priority=priority)
    await api.claim()
    async with watching(api) as watcher:
        assert isinstance(await watcher.next("history"), list)
        seen = await watcher.next("queue")
        assert seen["depth"] == 2
        assert seen["lanes"] == {"default": {"normal": 1, "batch": 1}}
        assert seen["leases"]["w1"]["number"] == 1
        assert seen["workers"][0]["latency_p90_ms"] == 90.0
        assert await api.queue.beat("w1", READY), "the worker learns that it is watched"
        row = RowNow(job="j", index=0, tokens=1, max_tokens=9)
        rows = WorkerRows(worker="w1", slots=4, waiting=0, jobs_total=3, rows=[row])
        await api.queue.watch.publish(rows)
        assert WorkerRows.model_validate(await watcher.next("rows")) == rows


async def test_many_watchers_are_one_look(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    look = QueueWatch.overview

    async def counted(watch: QueueWatch) -> Any:
        nonlocal looks
        looks += 1
        return await look(watch)

    monkeypatch.setattr(QueueWatch, "overview", counted)
    async with contextlib.AsyncExitStack() as stack:
        watchers = [await stack.enter_async_context(watching(api)) for _ in range(10)]
        for _ in range(2):
            await asyncio.gather(*(watcher.next("queue") for watcher in watchers))
        assert looks <= 3
    feed = api.services.home.feed
    async with asyncio.timeout(5):
        while feed.watched:
            await asyncio.sleep(0.01)


async def test_it_needs_the_scope_admin_and_a_known_model(keyed_api: RunningApi) -> None:
    reader = await make_key(keyed_api, scopes=[Scope.SUBMIT, Scope.READ])
    assert (await keyed_api.http.get(PATH, headers=reader)).status_code == 403
    admin = await make_key(keyed_api, scopes=[Scope.ADMIN])
    unknown = await keyed_api.http.get(PATH, headers=admin, params={"model": "gpt-9"})
    assert unknown.json()["code"] == "unknown_model"
    async with watching(keyed_api, headers=admin) as watcher:
        assert (await watcher.next("queue"))["depth"] == 0


async def test_history_is_kept_whether_or_not_somebody_watches(api: RunningApi) -> None:
    await api.queue.beat("w1", READY)
    history = api.services.home.feed.history
    async with asyncio.timeout(10):
        while not any(moment.latency_p90_ms for moment in history.moments):
            await asyncio.sleep(0.05)
    async with watching(api) as watcher:
        moments = await watcher.next("history")
    assert moments[-1]["latency_p50_ms"] == 20.0
    assert moments[-1]["at_ms"] > moments[0]["at_ms"] - 1
