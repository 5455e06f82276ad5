"""Several prompts in one completion request: a job for each, one answer."""

import asyncio
from typing import Any

import openai
import pytest

from millpond.messages import JobStatus
from tests.integration.conftest import RunningApi
from tests.integration.openai_client.conftest import MODEL

PROMPTS = ["Once", "Twice", "Three times"]
OPTIONS: dict[str, Any] = {"model": MODEL, "max_tokens": 9, "seed": 3}


async def test_the_choices_come_in_the_order_of_the_prompts(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(prompt=PROMPTS, n=2, **OPTIONS)
    alone = [await client.completions.create(prompt=one, n=2, **OPTIONS) for one in PROMPTS]

    assert [choice.index for choice in whole.choices] == list(range(6))
    assert [choice.text for choice in whole.choices] == [
        choice.text for answer in alone for choice in answer.choices
    ]
    assert whole.usage is not None
    usages = [answer.usage for answer in alone if answer.usage is not None]
    assert whole.usage.prompt_tokens == sum(usage.prompt_tokens for usage in usages)
    assert whole.usage.total_tokens == sum(usage.total_tokens for usage in usages)


async def test_a_stream_of_several_prompts_adds_up_to_the_whole(client: openai.AsyncOpenAI) -> None:
    whole = await client.completions.create(prompt=PROMPTS, **OPTIONS)
    stream = await client.completions.create(
        prompt=PROMPTS, stream=True, stream_options={"include_usage": True}, **OPTIONS
    )
    texts = [""] * 3
    last = None
    async for chunk in stream:
        last = chunk
        for choice in chunk.choices:
            texts[choice.index] += choice.text

    assert texts == [choice.text for choice in whole.choices]
    assert last is not None
    assert last.usage == whole.usage


async def test_prompts_as_token_ids(client: openai.AsyncOpenAI) -> None:
    ids = [[72, 105], [72, 111]]
    whole = await client.completions.create(
        prompt=ids, extra_body={"return_prompt_token_ids": True}, **OPTIONS
    )

    assert whole.model_extra is not None
    assert whole.model_extra["prompt_token_ids"] == ids


async def test_a_repeated_request_under_one_key_is_the_same_jobs(
    client: openai.AsyncOpenAI,
) -> None:
    ask = client.completions.with_raw_response.create
    headers = {"Idempotency-Key": "several"}
    one = await ask(prompt=PROMPTS, extra_headers=headers, **OPTIONS)
    other = await ask(prompt=PROMPTS, extra_headers=headers, **OPTIONS)

    assert one.headers["x-job-id"] == other.headers["x-job-id"]
    assert len(set(one.headers["x-job-id"].split(", "))) == 3


async def test_a_client_that_leaves_cancels_all_its_jobs(
    api: RunningApi, unserved: openai.AsyncOpenAI
) -> None:
    stream = await unserved.completions.create(prompt=PROMPTS, stream=True, **OPTIONS)
    await stream.close()

    async with asyncio.timeout(10):
        while (await api.services.home.results.queue_state()).done[JobStatus.CANCELLED] < 3:
            await asyncio.sleep(0.01)


async def test_one_prompt_that_cannot_be_read_leaves_no_job(
    api: RunningApi, unserved: openai.AsyncOpenAI
) -> None:
    with pytest.raises(openai.BadRequestError):
        await unserved.completions.create(prompt=["fine", "x" * 300_000], **OPTIONS)
    with pytest.raises(openai.BadRequestError, match="at most 128") as caught:
        await unserved.completions.create(prompt=["x"] * 129, **OPTIONS)

    assert caught.value.param == "prompt"
    state = await api.services.home.results.queue_state()
    assert (state.depth, sum(state.done.values())) == (0, 0)
