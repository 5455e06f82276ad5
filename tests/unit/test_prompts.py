"""From a request to token ids under a preset's limits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.errors import InvalidRequestError, PromptTooLongError, UnknownModelError
from millpond.messages import JobRequest, Message, Truncation
from millpond.models.chat_template import ChatTemplateError
from millpond.models.presets import Preset
from millpond.models.prompts import PreparedPrompt, prepare_prompt, shared_prefix, truncate
from millpond.models.tokenization import ByteTokenizer

PRESET = Preset(
    name="tiny",
    source="",
    max_tokens=10,
    context_tokens=100,
    max_prompt_tokens=60,
    max_output_tokens=50,
)
WITH_SYSTEM = Preset(**{f: getattr(PRESET, f) for f in PRESET.__slots__} | {"system_prompt": "SYS"})
TOKENIZER = ByteTokenizer()
CUTS = [Truncation.LEFT, Truncation.RIGHT, Truncation.MIDDLE]


def prepare(preset: Preset = PRESET, **fields: Any) -> PreparedPrompt:
    return prepare_prompt(JobRequest.model_validate(fields), preset, TOKENIZER)


def text_of(preset: Preset = PRESET, **fields: Any) -> str:
    return TOKENIZER.decode(prepare(preset, **fields).token_ids)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def test_a_prompt_is_a_user_turn_under_the_system_prompt() -> None:
    assert text_of(prompt="hi") == "user: hi\nassistant: "
    assert text_of(WITH_SYSTEM, prompt="hi") == "system: SYS\nuser: hi\nassistant: "
    assert text_of(WITH_SYSTEM, prompt="hi", system="own") == "system: own\nuser: hi\nassistant: "
    assert text_of(WITH_SYSTEM, prompt="hi", system="") == "user: hi\nassistant: "


def test_raw_text_and_token_ids_stay_as_they_are() -> None:
    assert text_of(WITH_SYSTEM, prompt="hi", raw=True) == "hi"
    assert prepare(WITH_SYSTEM, token_ids=[256, 0, 65]).token_ids == [256, 0, 65]


def test_messages_get_the_system_prompt_unless_they_bring_one() -> None:
    assert text_of(WITH_SYSTEM, messages=[user("hi")]) == "system: SYS\nuser: hi\nassistant: "
    own = {"role": "system", "content": "mine"}
    assert text_of(WITH_SYSTEM, messages=[own, user("hi")]).startswith("system: mine\nuser")
    assert text_of(messages=[user("hi")]) == "user: hi\nassistant: "


def test_an_adapter_must_be_one_that_is_served() -> None:
    adapted = replace(PRESET, adapters=("poems", "sql"))
    assert prepare(adapted, prompt="hi", adapter="sql").token_ids == prepare(prompt="hi").token_ids
    with pytest.raises(InvalidRequestError, match="'x' is not served here; there are poems, sql"):
        prepare(adapted, prompt="hi", adapter="x")
    with pytest.raises(
        InvalidRequestError, match="adapter: 'x' is not served here; there are none"
    ):
        prepare(prompt="hi", adapter="x")


def test_max_tokens_default_and_budget() -> None:
    prepared = prepare(prompt="abc", raw=True)
    assert (prepared.max_tokens, prepared.truncated, prepared.budget_tokens) == (10, False, 13)
    assert prepare(prompt="abc", raw=True, max_tokens=50).budget_tokens == 53


def test_model_names() -> None:
    assert prepare(prompt="x", model="tiny")
    with pytest.raises(UnknownModelError) as caught:
        prepare(prompt="x", model="other")
    assert caught.value.field == "model"
    assert "tiny" in str(caught.value)


def test_too_many_output_tokens() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        prepare(prompt="x", max_tokens=51)
    assert (caught.value.field, caught.value.limit) == ("max_tokens", 50)


def test_no_room_for_a_prompt() -> None:
    full = Preset(name="full", source="", context_tokens=50, max_output_tokens=50)
    with pytest.raises(InvalidRequestError) as caught:
        prepare(full, prompt="x", max_tokens=50)
    assert (caught.value.field, caught.value.limit) == ("max_tokens", 49)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"token_ids": [1, 257]}, "token_ids.1"),
        ({"prompt": "x", "stop_token_ids": [257]}, "stop_token_ids.0"),
    ],
)
def test_ids_outside_the_vocabulary(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        prepare(**fields)
    assert (caught.value.field, caught.value.limit) == (name, 256)


@pytest.mark.parametrize(("max_tokens", "limit"), [(10, 60), (40, 60), (50, 50)])
def test_the_limit_is_exact(max_tokens: int, limit: int) -> None:
    assert prepare(prompt="x" * limit, raw=True, max_tokens=max_tokens)
    with pytest.raises(PromptTooLongError) as caught:
        prepare(prompt="x" * (limit + 1), raw=True, max_tokens=max_tokens)
    assert (caught.value.field, caught.value.limit) == ("prompt", limit)
    assert str(limit + 1) in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"prompt": "x" * 100}, "prompt"),
        ({"messages": [user("x" * 100)]}, "messages"),
        ({"token_ids": [1] * 100}, "token_ids"),
    ],
)
def test_the_field_that_is_too_long_is_named(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(PromptTooLongError) as caught:
        prepare(**fields)
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        ("left", [*range(40, 100)]),
        ("right", [*range(60)]),
        ("middle", [*range(30), *range(70, 100)]),
    ],
)
def test_policies(policy: str, kept: list[int]) -> None:
    prepared = prepare(token_ids=[*range(100)], truncate=policy)
    assert prepared.token_ids == kept
    assert prepared.truncated is True


def test_a_policy_leaves_what_fits_alone() -> None:
    prepared = prepare(token_ids=[*range(60)], truncate="middle")
    assert prepared.token_ids == [*range(60)]
    assert prepared.truncated is False


TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=200)


@given(TOKENS, st.integers(1, 250), st.sampled_from(CUTS))
def test_a_cut_has_the_limits_length(tokens: list[int], limit: int, policy: Truncation) -> None:
    cut = truncate(tokens, limit, policy)
    assert len(cut) == min(limit, len(tokens))
    assert truncate(cut, limit, policy) == cut


@given(TOKENS, st.integers(1, 250))
def test_what_each_cut_keeps(tokens: list[int], limit: int) -> None:
    assert tokens[: len(tokens)] == tokens
    left = truncate(tokens, limit, Truncation.LEFT)
    assert tokens[len(tokens) - len(left) :] == left
    right = truncate(tokens, limit, Truncation.RIGHT)
    assert tokens[: len(right)] == right
    middle = truncate(tokens, limit, Truncation.MIDDLE)
    head = (len(middle) + 1) // 2
    assert tokens[:head] == middle[:head]
    assert tokens[len(tokens) - (len(middle) - head) :] == middle[head:]


@given(st.lists(st.integers(0, 256), min_size=1, max_size=150), st.integers(1, 50))
def test_whatever_is_prepared_fits_the_model(tokens: list[int], max_tokens: int) -> None:
    prepared = prepare(token_ids=tokens, max_tokens=max_tokens, truncate="left")
    assert 1 <= len(prepared.token_ids) <= PRESET.max_prompt_tokens
    assert prepared.budget_tokens <= PRESET.context_tokens
    assert prepared.truncated == (len(prepared.token_ids) < len(tokens))


class RefusingTokenizer(ByteTokenizer):
    """As with a template that raises."""

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        raise ChatTemplateError("the chat template refuses: no")


@pytest.mark.parametrize(
    ("fields", "field"), [({"prompt": "a"}, "prompt"), ({"messages": [user("a")]}, "messages")]
)
def test_what_the_template_refuses_is_named_by_its_field(
    fields: dict[str, Any], field: str
) -> None:
    request = JobRequest.model_validate(fields)
    with pytest.raises(InvalidRequestError, match="the chat template refuses: no") as caught:
        prepare_prompt(request, PRESET, RefusingTokenizer())
    assert caught.value.field == field


def test_the_shared_prefix() -> None:
    begin = "system: SYS\nuser: "
    assert TOKENIZER.decode(shared_prefix(WITH_SYSTEM, TOKENIZER)) == begin
    assert shared_prefix(WITH_SYSTEM, RefusingTokenizer()) == [], "no model is kept from starting"
