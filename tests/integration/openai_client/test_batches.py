"""``/v1/batches`` with the official client: what is refused, and batches that run in slices.

The slices are those of the background worker, called one by one, so that each can be stopped anywhere.
"""

import asyncio
import gc
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from openai.types import Batch
from redis import Redis

from background.batches import advancing, tasks, writing
from background.worker import Running
from millpond.batches.records import BatchRecord
from millpond.batches.steps import next_step
from millpond.local.server import RedisServer
from tests.acceptance.conftest import until
from tests.integration.conftest import RunningApi, StartApi, make_key
from tests.integration.openai_client.conftest import client_of, running_worker

CHAT = "/v1/chat/completions"
SLICES = {
    "validate": tasks.validate_batch,
    "advance": tasks.advance_batch,
    "finalize": tasks.finalize_batch,
}


def request(custom_id: str, url: str = CHAT, **body: Any) -> bytes:
    given = {"messages": [{"role": "user", "content": f"question {custom_id}"}], "max_tokens": 4}
    fields = {"custom_id": custom_id, "method": "POST", "url": url, "body": {**given, **body}}
    return orjson.dumps(fields) + b"\n"


@pytest.fixture
async def api(
    redis_server: RedisServer, start_api: StartApi, tmp_path: Path
) -> AsyncIterator[RunningApi]:
    async with start_api(redis_server.url, data_dir=tmp_path, auth="on") as running:
        yield running


@pytest.fixture
async def client(api: RunningApi) -> AsyncIterator[openai.AsyncOpenAI]:
    key = (await make_key(api))["Authorization"].removeprefix("Bearer ")
    async with client_of(api, api_key=key) as made:
        yield made


class Background:
    """The background worker, one slice at a time."""

    def __init__(self, api: RunningApi) -> None:
        settings = api.services.settings
        self.batches = api.services.batches
        self.files = api.services.files
        self.running = Running(settings, Redis.from_url(settings.redis_url))

    async def record(self, id: str) -> BatchRecord:
        found = await self.batches.find(id)
        assert found is not None
        return found

    async def slice(self, id: str) -> BatchRecord:
        """Whatever is next for the batch."""
        batch = await self.record(id)
        name = next_step(batch).function.rpartition(".")[2]
        await tasks._work(self.running, id, batch.turn, SLICES[name])
        return await self.record(id)

    async def to_the_end(self, id: str) -> BatchRecord:
        async with asyncio.timeout(30):
            while not (batch := await self.record(id)).ended:
                await self.slice(id)
        return batch


@pytest.fixture
def background(api: RunningApi, monkeypatch: pytest.MonkeyPatch) -> Iterator[Background]:
    monkeypatch.setattr(advancing, "SLICE_S", 0.3)
    monkeypatch.setattr(advancing, "SHARED_SLICE_S", 0.3)
    monkeypatch.setattr(advancing, "RENEW_S", 0.05)
    monkeypatch.setattr(writing, "WRITE_EVERY_S", 0.05)
    made = Background(api)
    yield made
    made.running.redis.close()


async def start(client: openai.AsyncOpenAI, *lines: bytes, window: str = "24h") -> Batch:
    file = await client.files.create(file=("in.jsonl", b"".join(lines)), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id,
        endpoint=CHAT,
        completion_window=window,  # type: ignore[arg-type]
        metadata={"night": "1"},
    )


async def lines_of(client: openai.AsyncOpenAI, file: str | None) -> list[dict[str, Any]]:
    if file is None:
        return []
    return [json.loads(line) for line in (await client.files.content(file)).text.splitlines()]


async def test_a_batch_from_its_file_to_its_outputs(
    api: RunningApi, client: openai.AsyncOpenAI, background: Background
) -> None:
    """One row fails in the worker: the others are in the output, that one is among the errors."""
    rows = [request(f"r{i}") for i in range(30)]
    made = await start(
        client, *rows, request("bad", messages=[{"role": "user", "content": "x" * 40_000}])
    )
    assert (made.object, made.status, made.completion_window) == ("batch", "validating", "24h")
    assert made.metadata == {"night": "1"}
    assert made.expires_at == made.created_at + 86_400
    async with running_worker(api):
        await background.to_the_end(made.id)
    batch = await client.batches.retrieve(made.id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"completed": 30, "failed": 1, "total": 31}
    assert batch.usage is not None
    assert batch.usage.total_tokens == batch.usage.input_tokens + batch.usage.output_tokens > 60
    stamps = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert stamps == sorted(stamp for stamp in stamps if stamp is not None)
    output = await lines_of(client, batch.output_file_id)
    assert Counter(line["custom_id"] for line in output) == {f"r{i}": 1 for i in range(30)}
    assert {line["response"]["status_code"] for line in output} == {200}
    assert output[0]["response"]["body"]["object"] == "chat.completion"
    [error] = await lines_of(client, batch.error_file_id)
    assert (error["custom_id"], error["error"]["code"]) == ("bad", "prompt_too_long")
    listed = {file.id: file.purpose async for file in client.files.list()}
    assert listed[batch.output_file_id or ""] == "batch_output"


async def test_what_is_there_can_be_read_while_it_runs(
    api: RunningApi, client: openai.AsyncOpenAI, background: Background
) -> None:
    made = await start(client, *(request(f"r{i}") for i in range(20)))
    await background.slice(made.id)
    running = asyncio.create_task(background.slice(made.id))

    async def claimed() -> Any:
        claim = await api.queue.claim("w1", 5, budget_tokens=10**6, capacity_tokens=10**6)
        return claim.jobs

    for job in (await until(claimed, 10.0, "rows are in the queue"))[:3]:
        await api.complete(job, "early", worker="w1")
    await running
    batch = await client.batches.retrieve(made.id)
    assert batch.status == "in_progress"
    assert batch.output_file_id is not None
    answer = await client.files.with_raw_response.content(batch.output_file_id)
    assert answer.headers["X-Incomplete"] == "true"
    assert (answer.headers["X-Rows"], answer.headers["X-Batch-Id"]) == ("3", made.id)
    assert len(answer.text.splitlines()) == 3
    with pytest.raises(openai.ConflictError):
        await client.files.delete(batch.output_file_id)


async def test_bad_lines_fail_the_batch(client: openai.AsyncOpenAI, background: Background) -> None:
    made = await start(client, request("a"), b"{nothing\n", request("a"), request("b", model="?"))
    await background.slice(made.id)
    batch = await client.batches.retrieve(made.id)
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert [(e.line, e.code, e.param) for e in batch.errors.data or ()] == [
        (2, "invalid_json_line", None),
        (3, "duplicate_custom_id", "custom_id"),
        (4, "model_not_found", "body.model"),
    ]
    assert batch.output_file_id is None


async def test_a_cancel_keeps_what_has_ended(
    api: RunningApi, client: openai.AsyncOpenAI, background: Background
) -> None:
    made = await start(client, *(request(f"r{i}") for i in range(8)))
    await background.slice(made.id)
    await background.slice(made.id)
    claim = await api.queue.claim("w1", 2, budget_tokens=10**6, capacity_tokens=10**6)
    for job in claim.jobs:
        await api.complete(job, "kept", worker="w1")
    assert (await client.batches.cancel(made.id)).status == "cancelling"
    await background.to_the_end(made.id)
    batch = await client.batches.retrieve(made.id)
    assert batch.status == "cancelled"
    assert len(await lines_of(client, batch.output_file_id)) == 2
    assert batch.error_file_id is None
    assert (await api.services.home.results.queue_state()).depth == 0
    with pytest.raises(openai.ConflictError, match="it is cancelled"):
        await client.batches.cancel(made.id)


async def test_an_expired_batch_keeps_what_has_ended_and_names_the_rest(
    api: RunningApi,
    client: openai.AsyncOpenAI,
    background: Background,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(advancing, "OUTSTANDING", 4)
    monkeypatch.setattr(advancing, "SUBMIT_ROWS", 4)
    made = await start(client, *(request(f"r{i}") for i in range(9)))
    await background.slice(made.id)
    await background.slice(made.id)
    claim = await api.queue.claim("w1", 1, budget_tokens=10**6, capacity_tokens=10**6)
    await api.complete(claim.jobs[0], "in time", worker="w1")
    key = background.batches.keys.of("batch", made.id)
    await api.services.redis.hset(key, "expires", made.created_at * 1000)
    await background.to_the_end(made.id)
    batch = await client.batches.retrieve(made.id)
    assert batch.status == "expired"
    assert batch.expired_at is not None
    output = await lines_of(client, batch.output_file_id)
    errors = await lines_of(client, batch.error_file_id)
    assert (len(output), len(errors)) == (1, 8)
    assert {line["error"]["code"] for line in errors} == {"batch_expired"}
    ids = [line["custom_id"] for line in (*output, *errors)]
    assert sorted(ids) == sorted(f"r{i}" for i in range(9))


# A connection that is cut off while it opens is left to the collector, which is asked to come at the end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_slice_that_is_cut_off_anywhere_loses_and_repeats_nothing(
    api: RunningApi,
    client: openai.AsyncOpenAI,
    background: Background,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a kill would: between any two awaits, and nothing is released. The lease is made to end at once."""
    monkeypatch.setattr(advancing, "OUTSTANDING", 40)
    monkeypatch.setattr(advancing, "SUBMIT_ROWS", 20)
    rows = 400
    made = await start(client, *(request(f"r{i}") for i in range(rows)))
    random.seed(7)
    key = background.batches.keys.of("batch", made.id)
    async with running_worker(api):
        cuts = 0
        while cuts < 20:
            cut = asyncio.create_task(background.slice(made.id))
            await asyncio.wait({cut}, timeout=random.uniform(0.0, 0.15))
            cuts += cut.cancel()
            await asyncio.gather(cut, return_exceptions=True)
            await api.services.redis.hset(key, "lease", 0)
        await background.to_the_end(made.id)
    batch = await client.batches.retrieve(made.id)
    assert batch.request_counts is not None
    assert batch.request_counts.completed == rows
    output = await lines_of(client, batch.output_file_id)
    assert Counter(line["custom_id"] for line in output) == {f"r{i}": 1 for i in range(rows)}
    state = await api.services.home.results.queue_state()
    assert sum(state.accepted.values()) == rows, "and no row ran twice"
    gc.collect()


async def test_lists_in_pages(client: openai.AsyncOpenAI) -> None:
    made = [(await start(client, request("a"))).id for _ in range(3)]
    page = await client.batches.list(limit=2)
    assert [batch.id for batch in page.data] == made[:0:-1]
    assert page.has_more
    assert [batch.id async for batch in page] == made[::-1]
    with pytest.raises(openai.NotFoundError, match="after"):
        await client.batches.list(after="batch_of_nobody")


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"endpoint": "/v1/embeddings"}, 400, "endpoint", "/v1/chat/completions"),
        ({"completion_window": "30d"}, 400, "completion_window", "1h to 7d"),
        ({"completion_window": "soon"}, 400, "completion_window", "1h to 7d"),
        ({"input_file_id": "file-of-nobody"}, 404, "input_file_id", "no file"),
        ({"metadata": {"k": "v" * 513}}, 400, "metadata.k", "512"),
        ({"metadata": {str(i): "" for i in range(17)}}, 400, "metadata", "16"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            400,
            "output_expires_after.seconds",
            "3600",
        ),
        ({"priority": "high"}, 400, "priority", "not permitted"),
    ],
)
async def test_a_bad_batch_names_its_field(
    client: openai.AsyncOpenAI, fields: dict[str, Any], status: int, param: str, words: str
) -> None:
    file = await client.files.create(file=("in.jsonl", request("a")), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h", **fields}
    with pytest.raises(openai.APIStatusError) as told:
        await client.post("/batches", body=body, cast_to=Batch)
    assert told.value.status_code == status
    assert told.value.param == param
    assert words in told.value.message


async def test_batches_of_deleted_files_and_of_others(
    api: RunningApi, client: openai.AsyncOpenAI, background: Background
) -> None:
    file = await client.files.create(file=("in.jsonl", request("a")), purpose="batch")
    other = (await make_key(api, tenant="other"))["Authorization"].removeprefix("Bearer ")
    asked: dict[str, Any] = {"endpoint": CHAT, "completion_window": "1h", "input_file_id": file.id}
    made = await client.batches.create(**asked)
    async with client_of(api, api_key=other) as stranger:
        assert not (await stranger.batches.list()).data
        for call in (stranger.batches.retrieve, stranger.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                await call(made.id)
        with pytest.raises(openai.NotFoundError):
            await stranger.batches.create(**asked)
    await client.files.delete(file.id)
    with pytest.raises(openai.NotFoundError) as told:
        await client.batches.create(**asked)
    assert (told.value.code, told.value.param) == ("file_not_found", "input_file_id")
    assert (await background.slice(made.id)).problems[0].code == "file_not_found"
