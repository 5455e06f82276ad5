"""The wire format: what is accepted, what is refused and by which name, what survives a round trip."""

import math
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from millpond.messages import (
    MAX_METADATA_ITEMS,
    MAX_METADATA_VALUE_CHARS,
    MAX_PROMPT_CHARS,
    PROTOCOL_VERSION,
    EventType,
    FinishReason,
    JobEvent,
    JobRequest,
    JobResult,
    JobStatus,
    Priority,
    Receipt,
    Truncation,
    Usage,
    choice_seed,
    job_id_from_key,
    new_job_id,
    seed_from_id,
)
from millpond.messages.sampling_params import (
    MAX_CHOICES,
    MAX_LOGIT_BIASES,
    MAX_LOGPROBS,
    MAX_OUTPUT_TOKENS,
    MAX_SEED,
    MAX_STOP_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
)
from millpond.messages.stored_results import DICTIONARY, pack, unpack
from tests.unit.test_keys import JOB_ID

FULL: dict[str, Any] = {
    "model": "m",
    "prompt": "hello",
    "system": "be brief",
    "truncate": "left",
    "priority": "batch",
    "deadline_s": 12.5,
    "metadata": {"k": "v"},
    "stream": False,
    "max_tokens": 5,
    "n": 2,
    "min_tokens": 1,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.05,
    "repetition_penalty": 1.1,
    "presence_penalty": -0.5,
    "frequency_penalty": 0.5,
    "logit_bias": {"5": -100.0},
    "seed": 7,
    "stop": ["END", "\n\n"],
    "stop_token_ids": [1, 2],
    "ignore_eos": True,
    "loop_repeats": 4,
    "logprobs": 3,
    "return_token_ids": True,
    "return_prompt_token_ids": True,
}


def refused(**fields: Any) -> list[str]:
    """The names at fault: the path of each error, or the one its message begins with."""
    with pytest.raises(ValidationError) as caught:
        JobRequest.model_validate({"prompt": "hello"} | fields)
    names = []
    for error in caught.value.errors():
        path = ".".join(str(part) for part in error["loc"])
        names.append(path or error["msg"].removeprefix("Value error, ").partition(":")[0])
    return names


def test_a_full_request_survives() -> None:
    request = JobRequest.model_validate(FULL)
    assert JobRequest.from_json(request.to_json()) == request
    assert orjson.loads(request.to_json()) == {"v": PROTOCOL_VERSION, **FULL}


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "x"},
        {"prompt": "x", "raw": True},
        {"prompt": "x", "system": ""},
        {"messages": [{"role": "user", "content": "x"}]},
        {"messages": [{"role": "system", "content": ""}, {"role": "assistant", "content": "y"}]},
        {"token_ids": [0, 2**31 - 1]},
    ],
)
def test_each_kind_of_input_survives(fields: dict[str, Any]) -> None:
    request = JobRequest.model_validate(fields)
    assert JobRequest.from_json(request.to_json()) == request


def test_the_body_is_canonical() -> None:
    body = JobRequest(prompt="x").to_json()
    assert body == b'{"prompt":"x","v":1}'
    assert (
        JobRequest(prompt="x", temperature=None, stop=[], priority=Priority.NORMAL).to_json()
        == body
    )
    one = JobRequest(prompt="x", metadata={"a": "1", "b": "2"}, seed=1)
    other = JobRequest(seed=1, metadata={"b": "2", "a": "1"}, prompt="x")
    assert one.to_json() == other.to_json()


@given(st.text(min_size=1).filter(lambda t: t.strip() and "\0" not in t))
def test_any_prompt_survives(prompt: str) -> None:
    request = JobRequest(prompt=prompt)
    assert JobRequest.from_json(request.to_json()).prompt == prompt


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", " \n\t"),
        ("prompt", "a\0b"),
        ("prompt", "\ud800"),
        ("prompt", 5),
        ("prompt", "x" * (MAX_PROMPT_CHARS + 1)),
        ("model", ""),
        ("model", "m\0"),
        ("model", "m" * 129),
        ("system", "\0"),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 10**9),
        ("max_tokens", MAX_OUTPUT_TOKENS + 1),
        ("max_tokens", 1.5),
        ("max_tokens", "many"),
        ("min_tokens", -1),
        ("min_tokens", MAX_OUTPUT_TOKENS + 1),
        ("temperature", -0.1),
        ("temperature", 10.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", -math.inf),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("top_k", -1),
        ("top_k", 1_000_001),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", math.nan),
        ("repetition_penalty", 0),
        ("repetition_penalty", 10.1),
        ("presence_penalty", -2.1),
        ("presence_penalty", math.nan),
        ("frequency_penalty", 2.1),
        ("logit_bias", {str(i): 1 for i in range(MAX_LOGIT_BIASES + 1)}),
        ("logit_bias", [1]),
        ("loop_repeats", 1),
        ("n", 0),
        ("n", MAX_CHOICES + 1),
        ("logprobs", -1),
        ("logprobs", MAX_LOGPROBS + 1),
        ("logprobs", True),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("deadline_s", 0),
        ("deadline_s", -1),
        ("deadline_s", math.inf),
        ("deadline_s", math.nan),
        ("deadline_s", 8 * 24 * 3600),
        ("stop", ["x"] * (MAX_STOP_STRINGS + 1)),
        ("stop", ["x"] * 10_000),
        ("stop_token_ids", [1] * (MAX_STOP_TOKEN_IDS + 1)),
        ("truncate", "top"),
        ("priority", "urgent"),
        ("raw", "perhaps"),
        ("metadata", {str(i): "v" for i in range(MAX_METADATA_ITEMS + 1)}),
        ("unknown_field", 1),
        ("v", 1),
    ],
    ids=lambda value: str(value)[:20].encode("unicode_escape").decode(),
)
def test_bad_fields_are_refused_by_name(field: str, value: object) -> None:
    assert refused(**{field: value}) == [field]


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("stop", ["a", ""], "stop.1"),
        ("stop", "x" * (MAX_STOP_CHARS + 1), "stop.0"),
        ("stop", ["a\0"], "stop.0"),
        ("stop_token_ids", [1, -1], "stop_token_ids.1"),
        ("logit_bias", {"1": 100.1}, "logit_bias.1"),
        ("logit_bias", {"1": "much"}, "logit_bias.1"),
        ("logit_bias", {"-1": 1}, "logit_bias.-1.[key]"),
        ("logit_bias", {"one": 1}, "logit_bias.one.[key]"),
        ("logit_bias", {str(2**31): 1}, f"logit_bias.{2**31}.[key]"),
        ("metadata", {"k": 5}, "metadata.k"),
        ("metadata", {"k": "x" * (MAX_METADATA_VALUE_CHARS + 1)}, "metadata.k"),
        ("metadata", {"k": "\0"}, "metadata.k"),
    ],
)
def test_bad_items_are_refused_by_their_place(field: str, value: object, name: str) -> None:
    assert refused(**{field: value}) == [name]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"prompt": None, "messages": []}, "messages"),
        ({"prompt": None, "messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"prompt": None, "messages": [{"role": "user"}]}, "messages.0.content"),
        ({"prompt": None, "messages": [{"role": "user", "content": "\0"}]}, "messages.0.content"),
        (
            {"prompt": None, "messages": [{"role": "user", "content": "x", "name": "n"}]},
            "messages.0.name",
        ),
        ({"prompt": None, "token_ids": []}, "token_ids"),
        ({"prompt": None, "token_ids": [5, -1]}, "token_ids.1"),
        ({"prompt": None, "token_ids": [2**31]}, "token_ids.0"),
        ({"prompt": None, "token_ids": [1], "raw": True}, "raw"),
        ({"prompt": None, "token_ids": [1], "system": "s"}, "system"),
        ({"raw": True, "system": "s"}, "system"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_inputs_and_combinations(fields: dict[str, Any], name: str) -> None:
    assert refused(**fields) == [name]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({}, "none"),
        ({"prompt": "x", "token_ids": [1]}, "prompt and token_ids"),
        (
            {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "token_ids": [1]},
            "prompt and messages and token_ids",
        ),
    ],
)
def test_exactly_one_input(fields: dict[str, Any], found: str) -> None:
    with pytest.raises(ValidationError, match=rf"exactly one of .*\(found {found}\)"):
        JobRequest.model_validate(fields)


def test_requests_are_frozen() -> None:
    with pytest.raises(ValidationError):
        JobRequest(prompt="x").prompt = "y"  # type: ignore[misc]


def test_one_stop_string_needs_no_list() -> None:
    assert JobRequest.model_validate({"prompt": "x", "stop": "END"}).stop == ["END"]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"prompt":"x"}', b'{"v":2,"prompt":"x"}', b'{"v":1}', b"\xff"]
)
def test_bodies_of_another_kind_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        JobRequest.from_json(body)


def test_a_result_survives_and_ignores_what_is_newer() -> None:
    result = JobResult(
        id="a",
        status=JobStatus.SUCCEEDED,
        finish_reason=FinishReason.LENGTH,
        text="é\n\"'\\",
        token_ids=[1, 2],
        usage=Usage(prompt_tokens=3, completion_tokens=2),
        metadata={"k": "v"},
        receipt=Receipt(
            attempt=1,
            worker="w",
            model="m",
            engine="simulated",
            backend="simulated",
            dtype="none",
            device="none",
            seed=1,
            claimed_ms=5,
            queue_wait_ms=1.0,
            window_jobs=1,
            group_rows=1,
            batch_rows=1.0,
            first_token_ms=1.0,
            run_ms=2.0,
        ),
    )
    assert JobResult.model_validate_json(result.to_json()) == result
    newer = orjson.dumps({**orjson.loads(result.to_json()), "from_the_future": {"x": 1}})
    assert JobResult.model_validate_json(newer) == result
    assert result.usage is not None
    assert result.usage.total_tokens == 5
    assert b"null" not in result.to_json()


def test_an_event_survives() -> None:
    event = JobEvent(type=EventType.DELTA, id="a", event_id="1-0", attempt=2, text="x", offset=7)
    assert JobEvent.model_validate_json(event.to_json()) == event


def test_statuses_that_end() -> None:
    ended = {status for status in JobStatus if status.terminal}
    assert ended == set(JobStatus) - {JobStatus.QUEUED, JobStatus.RUNNING}
    assert [str(policy) for policy in Truncation] == ["error", "left", "right", "middle"]


def test_made_ids_are_valid_and_distinct() -> None:
    made = {new_job_id() for _ in range(1_000)}
    assert len(made) == 1_000
    assert all(JOB_ID.fullmatch(id) for id in made)


@given(st.text(), st.text())
def test_ids_from_keys(tenant: str, key: str) -> None:
    try:
        id = job_id_from_key(tenant, key)
    except UnicodeEncodeError:  # lone surrogates, which no JSON or header brings in
        return
    assert id == job_id_from_key(tenant, key)
    assert JOB_ID.fullmatch(id)
    assert id != job_id_from_key(tenant + "x", key)
    assert id != job_id_from_key(tenant, key + "x")


def test_seeds_are_fixed_by_the_id() -> None:
    seeds = {seed_from_id(str(i)) for i in range(1_000)}
    assert len(seeds) == 1_000
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    assert seed_from_id("a") == seed_from_id("a")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", True),
        ("max_tokens", "5"),
        ("max_tokens", 2.0),
        ("temperature", "0.5"),
        ("temperature", True),
        ("ignore_eos", 1),
        ("stream", "yes"),
        ("deadline_s", "5"),
    ],
)
def test_a_value_of_another_type_is_refused_not_converted(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        JobRequest.model_validate({"prompt": "x", field: value})


def test_whole_numbers_do_for_fractions() -> None:
    assert JobRequest.model_validate({"prompt": "x", "temperature": 1}).temperature == 1.0


def test_each_choice_has_a_seed_of_its_own_and_the_first_the_jobs() -> None:
    seeds = [choice_seed(7, index) for index in range(16)]
    assert seeds[0] == 7
    assert len(set(seeds)) == 16
    assert seeds[1] == seed_from_id("7/1")  # as docs/protocol.md has it
    assert all(0 <= seed <= MAX_SEED for seed in seeds)


def test_a_stored_result_comes_back_and_is_small() -> None:
    result = JobResult(
        id="a" * 24,
        status=JobStatus.SUCCEEDED,
        finish_reason=FinishReason.STOP,
        text="é\n",
        usage=Usage(prompt_tokens=3, completion_tokens=2),
        metadata={"k": "v"},
    )
    stored = pack(result)
    assert unpack(stored, 7) == result.model_copy(update={"finished_ms": 7})
    assert len(stored) < len(result.to_json()) / 2
    assert unpack(result.to_json()) == result


def test_the_dictionary_of_results_is_the_protocols() -> None:
    """Readers in other languages have it from there; a change would make stored results unreadable."""
    page = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    section = page.split("### Compression")[1]
    assert "".join(section.split("```")[1].splitlines()) == DICTIONARY.decode()


def test_metadata_stands_at_the_head_of_a_body() -> None:
    request = JobRequest(prompt="hi", metadata={"b": 'ä"}', "a": "1"})
    head = b'{"metadata":'
    body = request.to_json()
    assert body.startswith(head)
    assert orjson.loads(body[len(head) :][: request.metadata_bytes]) == request.metadata
    assert JobRequest.from_json(body) == request
    assert JobRequest(prompt="hi").metadata_bytes == 0
