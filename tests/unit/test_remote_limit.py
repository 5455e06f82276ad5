"""The limit that adapts, the delays of retries, and what travels to and from an upstream."""

from typing import Any

import pytest

from millpond.messages import FinishReason, Message
from millpond.messages.sampling_params import MAX_SEED
from worker.engines.base import GenerationRequest, RowUsage, Sampling
from worker.engines.remote import wire
from worker.engines.remote.limit import AdaptiveLimit
from worker.engines.remote.retries import MAX_DELAY_S, MAX_RETRY_AFTER_S, backoff_s, retry_after_s


def test_a_crowd_turned_away_together_halves_once() -> None:
    limit = AdaptiveLimit(32)
    tickets = [limit.ticket() for _ in range(32)]
    assert [limit.overloaded(t, 32) for t in tickets] == [True] + [False] * 31
    assert limit.value == 16
    assert limit.overloaded(limit.ticket(), 16)
    assert limit.value == 8


def test_what_was_open_is_halved_not_what_was_allowed() -> None:
    limit = AdaptiveLimit(100)
    limit.overloaded(limit.ticket(), 10)
    assert limit.value == 5


def test_it_never_falls_below_one() -> None:
    limit = AdaptiveLimit(2)
    for _ in range(5):
        limit.overloaded(limit.ticket(), 1)
    assert limit.value == 1


def test_a_limits_worth_of_accepted_requests_adds_about_one_up_to_the_maximum() -> None:
    limit = AdaptiveLimit(12)
    limit.overloaded(limit.ticket(), 12)
    for _ in range(7):
        limit.accepted(limit.value)
    assert limit.value == 7
    for _ in range(1000):
        limit.accepted(limit.value)
    assert limit.value == 12


def test_a_limit_that_is_not_used_up_stays() -> None:
    limit = AdaptiveLimit(12)
    limit.overloaded(limit.ticket(), 12)
    for _ in range(1000):
        limit.accepted(5)
    assert limit.value == 6


def test_delays_double_between_half_and_whole_up_to_a_bound() -> None:
    assert [backoff_s(n, 1.0) for n in (1, 2, 3)] == [0.25, 0.5, 1.0]
    assert backoff_s(3, 0.0) == 0.5
    assert backoff_s(1000, 1.0) == MAX_DELAY_S


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("7", 7.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("1e9", MAX_RETRY_AFTER_S),
        ("Thu, 01 Jan 1970 00:16:50 GMT", 10.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after(header: str | None, wait_s: float | None) -> None:
    assert retry_after_s(header, now_s=1000.0) == wait_s


def request(**sampling: Any) -> GenerationRequest:
    values = {"max_tokens": 10, "seed": 5, **sampling}
    return GenerationRequest(
        "r", [1, 2, 3], Sampling(**values), messages=(Message(role="user", content="hi"),)
    )


def test_a_row_goes_on_behind_its_tokens_with_what_is_left_to_it() -> None:
    body = wire.body(
        request(min_tokens=4, stop_token_ids=(9,), stop=("x",), top_k=3, seed=MAX_SEED),
        (7, 8),
        route="completions",
        model="m",
        end_token_ids=(2,),
        exact=True,
    )
    assert body["prompt"] == [1, 2, 3, 7, 8]
    assert (body["max_tokens"], body["min_tokens"], body["seed"]) == (8, 2, 1)
    assert (body["stop_token_ids"], body["top_k"], body["min_p"]) == ([2, 9], 3, 0.0)
    assert "stop" not in body, "stop strings are found in the text that is made here"


def test_ignored_end_tokens_are_not_asked_for() -> None:
    body = wire.body(
        request(ignore_eos=True, stop_token_ids=(9,)),
        (),
        route="completions",
        model="m",
        end_token_ids=(2,),
        exact=True,
    )
    assert (body["ignore_eos"], body["stop_token_ids"]) == (True, [9])


def test_a_chat_gets_messages_and_only_the_unusual_fields() -> None:
    plain = wire.body(request(), (), route="chat", model="m", end_token_ids=(2,), exact=False)
    assert plain == {
        "model": "m",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 10,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 5,
        "messages": [{"role": "user", "content": "hi"}],
    }
    unusual = wire.body(
        request(stop=("x",), min_p=0.1), (), route="chat", model="m", end_token_ids=(), exact=False
    )
    assert (unusual["stop"], unusual["min_p"]) == (["x"], 0.1)


def test_chunks_of_both_routes() -> None:
    read = wire.read_chunk
    chunk = read({"choices": [{"text": "a", "token_ids": [1], "finish_reason": "stop"}]})
    assert chunk == wire.Chunk("a", (1,), FinishReason.STOP)
    assert read({"choices": [{"delta": {"content": "b"}, "finish_reason": None}]}).text == "b"
    assert read({"choices": [{"delta": {"role": "assistant"}}]}) == wire.Chunk()
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    assert read({"choices": [], "usage": usage}).usage == RowUsage(3, 4)


@pytest.mark.parametrize(
    "data",
    [
        [],
        "text",
        {"error": {"message": "broke"}},
        {"choices": [7]},
        {"choices": {"a": 1}},
        {"choices": [{"text": 7}]},
        {"choices": [{"text": "a", "token_ids": ["x"]}]},
        {"choices": [{"text": "a", "finish_reason": "content_filter"}]},
    ],
)
def test_chunks_that_cannot_be(data: Any) -> None:
    with pytest.raises(wire.ChunkError):
        wire.read_chunk(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"error": {"message": "a"}}, "a"),
        ({"error": "b"}, "b"),
        ({"message": "c"}, "c"),
        ({"detail": "d"}, "d"),
        ([], ""),
    ],
)
def test_error_messages_of_the_usual_shapes(data: Any, message: str) -> None:
    assert wire.error_message(data) == message
