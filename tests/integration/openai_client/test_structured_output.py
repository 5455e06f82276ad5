"""Constraints through OpenAI's own client, which makes schemas of its classes and reads the answers back."""

import re
from typing import Annotated, Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from tests.integration.openai_client.conftest import HELLO, MODEL


class Answer(BaseModel):
    """What the client makes a schema of."""

    reasons: Annotated[list[Literal["salt", "water"]], Field(min_length=1, max_length=3)]
    sure: bool


async def test_the_clients_own_structured_output(client: openai.AsyncOpenAI) -> None:
    options: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 200}
    parsed = await client.chat.completions.parse(**options, response_format=Answer)
    [choice] = parsed.choices
    assert isinstance(choice.message.parsed, Answer)
    assert choice.finish_reason == "stop"

    with pytest.raises(openai.LengthFinishReasonError):
        await client.chat.completions.parse(**{**options, "max_tokens": 3}, response_format=Answer)
    texts = {}
    for name, value in (("guided_choice", ["no"]), ("guided_regex", "[ab]{3}")):
        whole = await client.completions.create(
            model=MODEL, prompt="x", max_tokens=9, extra_body={name: value}
        )
        texts[name] = whole.choices[0].text
    assert texts["guided_choice"] == "no"
    assert re.fullmatch("[ab]{3}", texts["guided_regex"])
