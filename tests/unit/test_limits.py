"""A model's limits without its tokenizer: one check for HTTP, the client and the command."""

import subprocess
import sys
from typing import Any

import pytest

from millpond.client import Client
from millpond.errors import InvalidRequestError, UnknownModelError
from millpond.messages import JobRequest
from millpond.models.limits import check_limits
from millpond.models.presets import PRESETS, Preset
from millpond.models.prompts import prepare_prompt
from millpond.models.tokenization import ByteTokenizer

PRESET = PRESETS["smollm2-135m"]


@pytest.mark.parametrize(
    ("fields", "field", "limit"),
    [
        ({"max_tokens": 100_000}, "max_tokens", 4096),
        ({"model": "other"}, "model", None),
        ({"adapter": "sql"}, "adapter", None),
        ({"logprobs": 20, "max_tokens": 4096}, "logprobs", 50_000),
    ],
)
def test_the_tokenizing_side_says_the_same(
    fields: dict[str, Any], field: str, limit: int | None
) -> None:
    request = JobRequest(prompt="x", **fields)
    with pytest.raises(InvalidRequestError) as alone:
        check_limits(request, PRESET)
    with pytest.raises(InvalidRequestError) as whole:
        prepare_prompt(request, PRESET, ByteTokenizer())
    assert (alone.value.field, alone.value.limit) == (field, limit)
    assert (type(alone.value), str(alone.value)) == (type(whole.value), str(whole.value))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": "x"}, "prompt"),
        ({"prompt": "x", "system": ""}, "prompt"),
        ({"messages": [{"role": "user", "content": "x"}]}, "messages"),
    ],
)
def test_a_base_model_answers_no_chat(fields: dict[str, Any], field: str) -> None:
    base = Preset(name="base", source="", chat=False)
    with pytest.raises(InvalidRequestError, match="base is a base model") as caught:
        check_limits(JobRequest(**fields), base)
    assert caught.value.field == field


@pytest.mark.parametrize("fields", [{"prompt": "x", "raw": True}, {"token_ids": [1]}])
def test_a_base_model_continues_what_it_is_given(fields: dict[str, Any]) -> None:
    base = Preset(name="base", source="", chat=False)
    assert check_limits(JobRequest(**fields), base) == base.max_tokens


def test_what_fits_gets_the_presets_output() -> None:
    assert check_limits(JobRequest(prompt="x"), PRESET) == PRESET.max_tokens
    assert check_limits(JobRequest(prompt="x", max_tokens=7), PRESET) == 7
    with pytest.raises(UnknownModelError, match="tiny is"):
        check_limits(JobRequest(prompt="x", model="a"), Preset(name="tiny", source=""))


def test_a_client_needs_no_tokenizer_for_it() -> None:
    code = "import sys, millpond.client; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_a_client_that_knows_the_model_refuses_before_it_submits() -> None:
    """No server is there: nothing was sent."""
    async with Client("redis://127.0.0.1:1/0", preset=PRESET) as client:
        with pytest.raises(InvalidRequestError, match="100000 is above this model's limit of 4096"):
            await client.submit("x", max_tokens=100_000)
