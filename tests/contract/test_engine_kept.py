"""A row goes on behind tokens that were kept of it, and comes out as if it had never stopped."""

from dataclasses import replace
from typing import Any

import pytest

from millpond.models.presets import ThinkingMarkers
from tests.contract.engines import (
    LOOP,
    LOOPING,
    TOKENIZER,
    Build,
    drain,
    paced_by_steps,
    request,
    run,
    same_row,
)
from worker.engines.base import Engine, Finished, GenerationRequest, RejectionCode


def sampled(engine: Engine, **fields: Any) -> dict[str, Any]:
    """An upstream draws other numbers once it goes on."""
    temperature = 1.0 if paced_by_steps(engine) else 0.0
    return {"temperature": temperature, "seed": 7, "max_tokens": 24, **fields}


def going_on(row: GenerationRequest, end: Finished, tokens: int) -> GenerationRequest:
    """The same row, of which so many tokens were generated before."""
    logprobs = None if end.logprobs is None else end.logprobs[:tokens]
    return replace(row, kept_token_ids=end.token_ids[:tokens], kept_logprobs=logprobs)


@pytest.mark.parametrize("tokens", [1, 11, 23])
@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5, "repetition_penalty": 1.3},
        {"logprobs": 2},
        {"ignore_eos": False, "min_tokens": 20},
    ],
    ids=["plain", "penalties", "logprobs", "min_tokens"],
)
def test_it_comes_out_the_same(engine: Engine, sampling: dict[str, Any], tokens: int) -> None:
    row = request("r", "a prompt", **sampled(engine, **sampling))
    whole = run(engine, row)["r"]
    again = run(engine, going_on(row, whole, tokens), request("beside"))["r"]
    assert same_row(again, whole)
    if whole.logprobs is not None and again.logprobs is not None:
        kept, new = again.logprobs[:tokens], again.logprobs[tokens:]
        assert kept == whole.logprobs[:tokens]
        for one, other in zip(new, whole.logprobs[tokens:], strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_a_row_that_was_over_ends_at_once(build: Build) -> None:
    """Its worker died between the last token and the result."""
    engine = build(slots=2)
    row = request("r", max_tokens=5)
    whole = run(engine, row)["r"]
    assert engine.admit([going_on(row, whole, 5)]) == []
    assert engine.num_rows == 1
    again = drain(engine)["r"]
    assert same_row(again, whole)
    assert engine.capacity() == build(slots=2).capacity()


def test_a_loop_and_a_stop_string_across_the_break_are_found(engine: Engine) -> None:
    loop = request("loop", LOOP, max_tokens=100, loop_repeats=3, **LOOPING)
    whole = run(engine, loop)["loop"]
    assert same_row(run(engine, going_on(loop, whole, len(whole.token_ids) - 2))["loop"], whole)
    text = run(engine, request("r", "a prompt", **sampled(engine)))["r"].text
    stop = request("r", "a prompt", stop=(text[10:14],), **sampled(engine))
    whole = run(engine, stop)["r"]
    assert same_row(run(engine, going_on(stop, whole, 12))["r"], whole)


def test_wrong_tokens_are_refused(engine: Engine) -> None:
    row = replace(request("r"), kept_token_ids=(1, 10**6))
    [rejection] = engine.admit([row])
    assert rejection.code is RejectionCode.INVALID
    assert "kept tokens" in rejection.message


def test_reasoning_goes_on_and_is_ended_in_time(build: Build) -> None:
    engine = build(slots=2)
    if not paced_by_steps(engine):
        pytest.skip("an upstream cannot be made to end its reasoning")
    row = replace(
        request("r", "Hm. <think>", max_reasoning_tokens=8, max_tokens=40, seed=3),
        thinking=ThinkingMarkers("<think>", "</think>"),
    )
    whole = run(engine, row)["r"]
    assert whole.reasoning_tokens > 8
    for tokens in (4, 10, 30):
        again = run(engine, going_on(row, whole, tokens))["r"]
        assert same_row(again, whole)
        assert again.reasoning == whole.reasoning


def test_room_is_kept_for_what_it_has_grown_to(build: Build) -> None:
    engine = build(slots=2)
    before = engine.capacity().free_tokens
    row = replace(
        request("r", "x" * 10, max_tokens=100), predicted_tokens=4, kept_token_ids=(65,) * 40
    )
    assert engine.admit([row]) == []
    assert before - engine.capacity().free_tokens == 10 + 60
    assert len(TOKENIZER.encode("x" * 10)) == 10
