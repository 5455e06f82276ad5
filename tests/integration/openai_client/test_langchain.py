"""LangChain's ``ChatOpenAI``, which nobody here wrote."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI

from tests.integration.conftest import RunningApi
from tests.integration.openai_client.conftest import MODEL

ASKED = [SystemMessage("Be brief."), HumanMessage("Why is the sea salty?")]


@pytest.fixture
async def address(served: RunningApi) -> AsyncIterator[dict[str, Any]]:
    """Where, and over connections that are closed at the end: LangChain's own live as long as the process."""
    with httpx.Client() as http_client:
        async with httpx.AsyncClient() as http_async_client:
            yield {
                "base_url": f"{served.http.base_url}/v1",
                "api_key": "none",
                "http_client": http_client,
                "http_async_client": http_async_client,
            }


@pytest.fixture
def chat(address: dict[str, Any]) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL, max_retries=0, max_tokens=12, seed=4, stream_usage=True, **address
    )


async def test_an_answer_with_its_counts(chat: ChatOpenAI) -> None:
    answer = await chat.ainvoke(ASKED)

    assert isinstance(answer, AIMessage)
    assert answer.content
    assert answer.response_metadata["model_name"] == MODEL
    assert answer.usage_metadata is not None
    assert 0 < answer.usage_metadata["output_tokens"] <= 12


async def test_the_stream_adds_up_to_the_answer(chat: ChatOpenAI) -> None:
    whole = await chat.ainvoke(ASKED)
    chunks = [chunk async for chunk in chat.astream(ASKED)]

    assert len(chunks) > 2
    assert "".join(str(chunk.content) for chunk in chunks) == whole.content
    assert [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata] == [
        whole.usage_metadata
    ]


async def test_a_batch_and_log_probabilities(chat: ChatOpenAI) -> None:
    logged = chat.bind(logprobs=True, top_logprobs=2)
    answers = await logged.abatch([ASKED, "Name three rivers.", "And a lake?"])

    assert len({answer.id for answer in answers}) == 3
    tokens = answers[0].response_metadata["logprobs"]["content"]
    texts = [token["token"] for token in tokens if token["token"] != "<end>"]
    assert "".join(texts) == answers[0].content
    assert all(token["top_logprobs"] for token in tokens)


async def test_several_prompts_in_one_completion(address: dict[str, Any]) -> None:
    model = OpenAI(model=MODEL, max_tokens=8, n=2, **address)
    result = await model.agenerate(["Once", "Twice"])

    assert [len(texts) for texts in result.generations] == [2, 2]
