"""A chat whose texts vote, as OpenAI's client gets it."""

from typing import Any

import openai
import pytest

from tests.integration.openai_client.conftest import HELLO, MODEL

# Nearly every text has this letter, and each its own length.
VOTING: dict[str, Any] = {"vote": "regex", "vote_pattern": "(e)"}


async def test_the_winning_text_comes_first(client: openai.AsyncOpenAI) -> None:
    options: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 200, "seed": 5, "n": 8}
    whole = await client.chat.completions.create(**options, temperature=1.0, extra_body=VOTING)
    vote = (whole.model_extra or {})["vote"]
    assert vote["answer"] == "e"
    assert vote["answers"][0]["count"] >= 5
    assert whole.choices[0].index == vote["winner"] == vote["answers"][0]["texts"][0]
    assert whole.choices[0].finish_reason == "stop"
    assert sorted(choice.index for choice in whole.choices) == list(range(8))
    cut = [c.index for c in whole.choices if str(c.finish_reason) == "cancelled"]
    assert sorted(cut) == vote["cancelled"]
    assert cut
    stream = await client.chat.completions.create(
        **options, temperature=1.0, stream=True, extra_body=VOTING
    )
    texts, told = [""] * 8, []
    async for chunk in stream:
        told += [(chunk.model_extra or {})["vote"]] if "vote" in (chunk.model_extra or {}) else []
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    [streamed] = told
    assert streamed["answer"] == "e"
    # Who was cut, and where, is a matter of time; a text that both runs finished is the same.
    for choice in whole.choices:
        if choice.index not in (*cut, *streamed["cancelled"]):
            assert texts[choice.index] == choice.message.content


async def test_a_bad_pattern_is_named(unserved: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="needs a group") as caught:
        await unserved.chat.completions.create(
            model=MODEL,
            messages=HELLO,
            n=2,
            extra_body={"vote": "regex", "vote_pattern": r"\d+"},
        )
    assert caught.value.param == "vote_pattern"
