"""From errors to problems."""

import pytest
from pydantic import ValidationError

from api.answers.errors import InvalidBodyError, problem_of
from api.monitor import retry_after_s
from api.requests.bodies import lone_surrogate_field
from millpond.errors import (
    InvalidRequestError,
    JobNotFoundError,
    ModelLoadError,
    QueueFullError,
    QueueUnavailableError,
)
from millpond.messages import JobRequest


def test_a_field_error_keeps_field_message_and_limit() -> None:
    problem = problem_of(InvalidRequestError("max_tokens", "too many", limit=5)).as_dict()

    assert problem == {
        "type": "urn:millpond:problem:invalid_request",
        "title": "Invalid request",
        "status": 422,
        "detail": "max_tokens: too many",
        "code": "invalid_request",
        "errors": [{"field": "max_tokens", "message": "too many", "limit": 5}],
    }


def test_several_faults_are_all_listed() -> None:
    with pytest.raises(ValidationError) as caught:
        JobRequest.model_validate(
            {"prompt": "a", "top_p": 2, "seed": -1, "nonsense": 1, "raw": "?"}
        )

    problem = problem_of(InvalidBodyError.from_pydantic(caught.value))

    assert {fault.field for fault in problem.faults} == {"top_p", "seed", "nonsense", "raw"}
    assert "and 1 more" in problem.detail


def test_a_fault_of_the_whole_names_its_field_and_repeats_no_input() -> None:
    with pytest.raises(ValidationError) as caught:
        JobRequest.model_validate({"prompt": "swordfish", "token_ids": [1]})

    [fault] = InvalidBodyError.from_pydantic(caught.value).faults

    assert fault.field == "prompt"
    assert fault.message.startswith("give exactly one of prompt, messages and token_ids")
    assert "swordfish" not in str(fault)


def test_our_own_failures_show_no_details() -> None:
    internal = problem_of(ModelLoadError("/srv/secret: broken"))
    away = problem_of(QueueUnavailableError("10.0.0.7:6379 refused"))
    missing = problem_of(JobNotFoundError("<script>"))

    assert (internal.status, internal.code) == (500, "internal_error")
    assert (away.status, away.retry_after_s) == (503, 2)
    assert missing.status == 404
    for problem in (internal, away, missing):
        shown = str(problem.as_dict())
        assert not any(word in shown for word in ("secret", "10.0.0.7", "script"))


def test_a_full_queue_carries_its_retry_after() -> None:
    response = problem_of(QueueFullError(5, 5, retry_after_s=12)).response()

    assert (response.status_code, response.headers["retry-after"]) == (429, "12")


@pytest.mark.parametrize(
    ("depth", "jobs_per_s", "expected"),
    [(100_000, 0.0, 30), (100_000, 500.0, 10), (100, 50.0, 1), (100_000, 0.01, 600)],
)
def test_retry_after_follows_the_pace(depth: int, jobs_per_s: float, expected: int) -> None:
    assert retry_after_s(depth, jobs_per_s) == expected


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (rb'{"a": "\ud83d\ude00"}', None),
        (rb'{"a": {"b": ["x", "\udc00"]}, "c": "\ud800"}', "a.b.1"),
        (rb'"\ud800"', "body"),
        (rb'{"a": {"\ud800": 1}}', "a"),
        (rb'{"a": "\ud800"', None),
        (b'["\\ud800",' + b"[" * 100_000, None),
    ],
)
def test_half_characters_are_found_by_field(body: bytes, field: str | None) -> None:
    assert lone_surrogate_field(body) == field
