"""OpenAI's own client against the real API server, with a real worker around the simulated engine."""

import asyncio
from typing import Any

import openai
import pytest

from millpond.access.api_keys import Scope
from millpond.local.server import RedisServer
from millpond.messages import EventType, JobEvent, JobStatus
from tests.integration.conftest import RunningApi, StartApi, make_key
from tests.integration.openai_client.conftest import HELLO, MODEL, client_of, running_worker


async def test_a_chat_is_answered(served: RunningApi, client: openai.AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, max_completion_tokens=12, user="u7"
    )

    answer = raw.parse()
    [choice] = answer.choices
    assert (answer.object, answer.model, choice.message.role) == (
        "chat.completion",
        MODEL,
        "assistant",
    )
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 12
    view = await served.services.home.results.get(raw.headers["x-job-id"])
    assert view.result is not None
    assert view.result.text == choice.message.content
    assert view.result.metadata == {"user": "u7"}
    assert view.priority == "interactive"
    assert answer.id == f"chatcmpl-{view.id}"


async def test_streamed_chunks_add_up_to_the_whole(client: openai.AsyncOpenAI) -> None:
    options: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 30, "seed": 5, "n": 3}
    whole = await client.chat.completions.create(**options)

    stream = await client.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    )
    texts, roles, ends = ["", "", ""], set(), {}
    last = None
    async for chunk in stream:
        last = chunk
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            if choice.delta.role:
                roles.add((choice.index, choice.delta.role))
            if choice.finish_reason:
                ends[choice.index] = choice.finish_reason

    assert texts == [choice.message.content for choice in whole.choices]
    assert roles == {(i, "assistant") for i in range(3)}
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}
    assert last is not None
    assert last.usage == whole.usage


async def test_every_chunk_has_its_usage_if_asked_for(client: openai.AsyncOpenAI) -> None:
    """As vLLM's own client and guidellm ask for it: they measure by these counts."""
    usage_options: Any = {"include_usage": True, "continuous_usage_stats": True}
    stream = await client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=40, stream=True, stream_options=usage_options
    )
    counts, prompts, total = [], set(), None
    async for chunk in stream:
        assert chunk.usage is not None
        if chunk.choices:
            counts.append(chunk.usage.completion_tokens)
            prompts.add(chunk.usage.prompt_tokens)
        else:
            total = chunk.usage
    assert total is not None
    assert prompts == {total.prompt_tokens}
    assert counts[0] == 0
    assert counts[-1] == total.completion_tokens
    assert counts == sorted(counts)
    assert len(set(counts)) > 2
    of_two = await client.completions.create(
        model=MODEL, prompt=["a", "bcd"], max_tokens=9, stream=True, stream_options=usage_options
    )
    lengths = {
        (choice.index, chunk.usage.prompt_tokens)
        async for chunk in of_two
        for choice in chunk.choices
        if chunk.usage is not None
    }
    assert lengths == {(0, 1), (1, 3)}


async def test_logprobs_of_a_stream_are_those_of_the_whole(client: openai.AsyncOpenAI) -> None:
    options: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 8, "logprobs": True}
    whole = await client.chat.completions.create(**options)
    streamed: list[Any] = []
    async for chunk in await client.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            if choice.logprobs is not None and choice.logprobs.content:
                streamed += choice.logprobs.content

    assert whole.choices[0].logprobs is not None
    assert streamed == whole.choices[0].logprobs.content
    assert len(streamed) > 1


async def test_a_completion_continues_a_text(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(model=MODEL, prompt="Once", max_tokens=9)
    text = ""
    async for chunk in await client.completions.create(
        model=MODEL, prompt=["Once"], max_tokens=9, stream=True
    ):
        text += "".join(choice.text for choice in chunk.choices)

    assert whole.object == "text_completion"
    assert text == whole.choices[0].text


async def test_a_stop_string_and_token_ids(client: openai.AsyncOpenAI) -> None:
    free = await client.completions.create(model=MODEL, prompt="x", max_tokens=30)
    stop = free.choices[0].text[4:6]

    cut = await client.completions.create(model=MODEL, prompt="x", max_tokens=30, stop=stop)
    same = await client.completions.create(model=MODEL, prompt=list(b"x"), max_tokens=30)

    assert cut.choices[0].text == free.choices[0].text[:4]
    assert cut.choices[0].finish_reason == "stop"
    assert same.choices[0].text == free.choices[0].text


async def test_the_synchronous_client(served: RunningApi) -> None:
    def ask() -> tuple[str | None, str]:
        url = f"{served.http.base_url}/v1"
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=5)
            parts = client.chat.completions.create(
                model=MODEL, messages=HELLO, max_tokens=5, stream=True
            )
            streamed = "".join(part.choices[0].delta.content or "" for part in parts)
            return answer.choices[0].message.content, streamed

    whole, streamed = await asyncio.to_thread(ask)
    assert streamed == whole


async def test_models_are_listed(client: openai.AsyncOpenAI) -> None:
    page = await client.models.list()
    assert [model.id for model in page.data] == [MODEL]


async def test_a_client_that_leaves_cancels_its_job(
    api: RunningApi, unserved: openai.AsyncOpenAI
) -> None:
    stream = await unserved.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
    id = stream.response.headers["x-job-id"]
    await stream.close()
    await ended_as(api, id, JobStatus.CANCELLED)

    with pytest.raises(openai.APITimeoutError):
        await unserved.with_options(timeout=0.3).chat.completions.create(
            model=MODEL, messages=HELLO
        )
    async with asyncio.timeout(10):
        while (await api.services.home.results.queue_state()).done[JobStatus.CANCELLED] < 2:
            await asyncio.sleep(0.01)


async def test_an_attempt_that_begins_again_repeats_nothing(
    api: RunningApi, unserved: openai.AsyncOpenAI
) -> None:
    stream = await unserved.completions.create(model=MODEL, prompt="x", stream=True)
    first = await api.claim()
    await emit(api, first.id, first.fence, "One two", 0)
    await api.queue.release([(first.id, first.fence)])
    second = await api.claim()
    await emit(api, second.id, second.fence, "One", 0)
    await emit(api, second.id, second.fence, " two three", 3)
    await api.complete(second, "One two three four")

    texts = [choice.text async for chunk in stream for choice in chunk.choices]

    assert [text for text in texts if text] == ["One two", " three", " four"]


async def test_an_attempt_that_writes_something_else_ends_the_stream_with_an_error(
    api: RunningApi, unserved: openai.AsyncOpenAI
) -> None:
    stream = await unserved.completions.create(model=MODEL, prompt="x", stream=True)
    first = await api.claim()
    await emit(api, first.id, first.fence, "One two", 0)
    await api.queue.release([(first.id, first.fence)])
    second = await api.claim()
    await api.complete(second, "Something else")

    with pytest.raises(openai.APIError, match="wrote another text"):
        async for _ in stream:
            pass


async def test_a_repeated_request_under_one_key_is_one_job(client: openai.AsyncOpenAI) -> None:
    ask = client.chat.completions.with_raw_response.create
    headers = {"Idempotency-Key": "k1"}
    one = await ask(model=MODEL, messages=HELLO, max_tokens=5, extra_headers=headers)
    other = await ask(model=MODEL, messages=HELLO, max_tokens=5, extra_headers=headers)

    assert one.headers["x-job-id"] == other.headers["x-job-id"]
    with pytest.raises(openai.ConflictError):
        await ask(model=MODEL, messages=HELLO, max_tokens=6, extra_headers=headers)


async def test_a_job_with_a_key_outlives_its_request(
    api: RunningApi, unserved: openai.AsyncOpenAI
) -> None:
    ask = unserved.chat.completions.create
    options: Any = {"model": MODEL, "messages": HELLO, "extra_headers": {"Idempotency-Key": "k2"}}
    with pytest.raises(openai.APITimeoutError):
        await ask(**options, timeout=0.3)
    async with running_worker(api):
        answer = await ask(**options)

    done = (await api.services.home.results.queue_state()).done
    assert {status: number for status, number in done.items() if number} == {JobStatus.SUCCEEDED: 1}
    assert answer.choices[0].message.content


ENDLESS = {"type": "array", "minItems": 1, "items": {"$ref": "#"}}
BAD: list[tuple[dict[str, Any], type[openai.APIStatusError], str, str]] = [
    ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found", "model"),
    ({"messages": []}, openai.BadRequestError, "invalid_request", "messages"),
    ({"temperature": 11}, openai.BadRequestError, "invalid_request", "temperature"),
    ({"tools": [{"type": "function"}]}, openai.BadRequestError, "invalid_request", "tools"),
    ({"n": 17}, openai.BadRequestError, "invalid_request", "n"),
    ({"max_tokens": 0}, openai.BadRequestError, "invalid_request", "max_tokens"),
    ({"reasoning_effort": "low"}, openai.BadRequestError, "invalid_request", "reasoning_effort"),
    ({"extra_body": {"frobnicate": 1}}, openai.BadRequestError, "invalid_request", "frobnicate"),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": ENDLESS},
            }
        },
        openai.BadRequestError,
        "invalid_request",
        "response_format",
    ),
    (
        {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
        openai.BadRequestError,
        "invalid_request",
        "messages.0",
    ),
    (
        {"messages": [{"role": "user", "content": "x" * 300_000}]},
        openai.BadRequestError,
        "context_length_exceeded",
        "messages",
    ),
]


@pytest.mark.parametrize(("fields", "kind", "code", "param"), BAD)
async def test_a_bad_request_names_its_field(
    unserved: openai.AsyncOpenAI,
    fields: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str,
    param: str,
) -> None:
    with pytest.raises(kind) as caught:
        await unserved.chat.completions.create(**{"model": MODEL, "messages": HELLO, **fields})

    assert caught.value.code == code
    assert caught.value.param is not None
    assert param in caught.value.param
    assert caught.value.type in ("invalid_request_error", "not_found_error")


async def test_the_clients_other_errors(keyed_api: RunningApi) -> None:
    async def refused(kind: type[openai.APIStatusError], token: str) -> None:
        async with client_of(keyed_api, api_key=token) as client:
            with pytest.raises(kind):
                await client.chat.completions.create(model=MODEL, messages=HELLO)

    def token(headers: dict[str, str]) -> str:
        return headers["Authorization"].removeprefix("Bearer ")

    await refused(openai.AuthenticationError, "mp_wrong")
    await refused(
        openai.PermissionDeniedError, token(await make_key(keyed_api, scopes=[Scope.READ]))
    )
    spent = await make_key(keyed_api, requests_per_minute=1)
    assert (await keyed_api.http.get("/v1/models", headers=spent)).status_code == 200
    await refused(openai.RateLimitError, token(spent))


async def test_a_redis_that_is_away_is_the_clients_server_error(
    redis_server: RedisServer, start_api: StartApi
) -> None:
    async with start_api("redis://127.0.0.1:1/0") as api, client_of(api) as client:
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model=MODEL, messages=HELLO)


async def test_a_deadline_that_passes(unserved: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        await unserved.chat.completions.create(
            model=MODEL, messages=HELLO, extra_body={"deadline_s": 0.05}
        )
    assert caught.value.status_code == 504


async def test_a_body_that_is_no_json(api: RunningApi) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await api.http.post("/v1/chat/completions", content=b"{", headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_json"


async def emit(api: RunningApi, id: str, fence: int, text: str, offset: int) -> None:
    event = JobEvent(type=EventType.DELTA, id=id, text=text, offset=offset)
    await api.queue.emit([(fence, event)])


async def ended_as(api: RunningApi, id: str, status: JobStatus) -> None:
    view = await api.services.home.results.wait(id, 10.0)
    assert view.status is status
