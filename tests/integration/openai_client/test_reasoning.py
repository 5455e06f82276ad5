"""A model that reasons before it answers: both apart, in whole answers, chunks, events and counts."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import openai
import pytest

from millpond.models.presets import PRESETS, THINK
from tests.integration.conftest import RunningApi
from tests.integration.openai_client.conftest import HELLO, MODEL, client_of, running_worker

SAYS = "<think>\nTwo and two.\n</think>\n\nFour."
ASK: list[Any] = [{"role": "user", "content": f"[say]{SAYS}[say]"}]


@pytest.fixture
async def client(api: RunningApi) -> AsyncIterator[openai.AsyncOpenAI]:
    """Of a service whose model reasons."""
    reasoning = replace(PRESETS[MODEL], thinking=THINK)
    api.services.home.tokenizing.preset = reasoning
    async with running_worker(api, reasoning), client_of(api) as made:
        yield made


async def test_the_reasoning_is_told_apart_and_counted(
    api: RunningApi, client: openai.AsyncOpenAI
) -> None:
    options: Any = {"model": MODEL, "messages": ASK, "max_tokens": 200}
    whole, stream = await asyncio.gather(
        client.chat.completions.create(**options),
        client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        ),
    )
    message: Any = whole.choices[0].message
    assert (message.reasoning_content, message.content) == ("Two and two.\n", "Four.")
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    count = len("<think>\nTwo and two.\n</think>")
    assert whole.usage.completion_tokens_details.reasoning_tokens == count

    pieces = [("", "")]
    async for chunk in stream:
        for choice in chunk.choices:
            delta: Any = choice.delta
            thought, said = getattr(delta, "reasoning_content", None) or "", delta.content or ""
            assert not (thought and pieces[-1][1]), "it thinks before it speaks"
            pieces.append((thought, said))
        assert chunk.usage is None or chunk.usage == whole.usage
    assert "".join(thought for thought, _ in pieces) == message.reasoning_content
    assert "".join(said for _, said in pieces) == message.content

    again: Any = [*ASK, message.model_dump(exclude_none=True), *HELLO]
    await client.chat.completions.create(model=MODEL, messages=again, max_tokens=3)


async def test_events_and_the_result_of_a_job_do_so_too(
    api: RunningApi, client: openai.AsyncOpenAI
) -> None:
    id = await api.submit(f"[say]{SAYS}[say]", n=2)
    answer = await api.http.get(f"/v1/jobs/{id}", params={"wait": 20})
    result = answer.json()["result"]
    assert (result["reasoning_content"], result["text"]) == ("Two and two.\n", "Four.")
    assert [choice["reasoning_content"] for choice in result["choices"]] == ["Two and two.\n"] * 2
    assert result["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    lines = (await api.http.get(f"/v1/jobs/{id}/events")).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    first = [event for event in events if event.get("index") == 0]
    texts = {
        kind: "".join(event["text"] for event in first if event["type"] == kind)
        for kind in ("reasoning", "delta")
    }
    assert texts == {"reasoning": "Two and two.\n", "delta": "Four."}


async def test_the_reasoning_can_be_ended_and_a_schema_is_the_answers(
    client: openai.AsyncOpenAI,
) -> None:
    whole = await client.chat.completions.create(
        model=MODEL,
        messages=HELLO,
        max_tokens=300,
        response_format={"type": "json_object"},
        extra_body={"max_reasoning_tokens": 30},
    )
    message: Any = whole.choices[0].message
    assert message.content == '{"":""}'
    assert len(message.reasoning_content) == 30 - len("<think>\n") + len("\n")


async def test_a_model_that_does_not_reason_refuses_the_limit(
    unserved: openai.AsyncOpenAI,
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await unserved.chat.completions.create(
            model=MODEL, messages=HELLO, extra_body={"max_reasoning_tokens": 5}
        )
    assert caught.value.param == "max_reasoning_tokens"
