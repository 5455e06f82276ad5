"""What every engine promises of rows whose text is constrained, or that are to end their reasoning.

An upstream keeps to constraints by itself, see test_remote_engine.py."""

import re
from dataclasses import replace
from typing import Any

import pytest

from millpond.messages import FinishReason
from millpond.messages.constraints import Constraint
from millpond.models.grammars import GrammarCompiler
from millpond.models.presets import THINK
from tests.contract.engines import TOKENIZER, Build, paced_by_steps, request, run, same_row
from worker.engines.base import Engine, GenerationRequest

COMPILER = GrammarCompiler(TOKENIZER)
CONSTRAINTS = {
    "json": (
        "json_schema",
        '{"type":"object","properties":{"a":{"enum":["x","y"]},"b":{"type":"boolean"}},'
        '"required":["a","b"],"additionalProperties":false}',
        r'\s*{\s*"a"\s*:\s*"[xy]"\s*,\s*"b"\s*:\s*(true|false)\s*}',
    ),
    "choice": ("choice", '["yes", "no", "perhaps"]', "yes|no|perhaps"),
    "regex": ("regex", "[a-f]{3,9}!", "[a-f]{3,9}!"),
    "grammar": ("grammar", 'start: "(" start ")" | "x"', r"\(*x\)*"),
}


def constrained(row_id: str, **sampling: Any) -> GenerationRequest:
    kind, text, _ = CONSTRAINTS[row_id.split()[0]]
    grammar = COMPILER.compile(Constraint(kind, "field", text))
    sampling = {"ignore_eos": False, "max_tokens": 120, **sampling}
    return replace(request(row_id, **sampling), grammar=grammar)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_constrained_rows_keep_to_it_and_leave_the_others_as_they_were(
    build: Build, temperature: float
) -> None:
    """In any company: n rows of one prompt, which share its prefill, among free ones."""
    free = [request(f"free {i}", max_tokens=30, temperature=temperature, seed=i) for i in range(4)]
    alone = run(build(slots=16), *free)
    engine = build(slots=16)
    if not paced_by_steps(engine):
        return  # an upstream keeps to them itself, see test_remote_engine.py
    rows = [
        constrained(name if i == 0 else f"{name} {i}", temperature=temperature, seed=i)
        for name in CONSTRAINTS
        for i in range(2)
    ]
    ends = run(engine, *free[:2], *rows, *free[2:])
    for name, end in alone.items():
        assert same_row(ends[name], end)
    for row in rows:
        end = ends[row.id]
        _, _, pattern = CONSTRAINTS[row.id.split()[0]]
        assert end.reason in (FinishReason.STOP, FinishReason.LENGTH)
        assert end.text
        if end.reason is FinishReason.STOP:
            assert re.fullmatch(pattern, end.text), end
        else:
            assert len(end.token_ids) == 120
    assert sum(ends[row.id].reason is FinishReason.STOP for row in rows) >= 6


def test_a_constrained_row_that_is_cut_says_length(engine: Engine) -> None:
    end = run(engine, constrained("json", max_tokens=3))["json"]
    assert (end.reason, len(end.token_ids)) == (FinishReason.LENGTH, 3)


def test_a_preempted_constrained_row_goes_on_where_it_was(build: Build) -> None:
    roomy = run(build(), *(constrained(f"regex {i}", seed=i, temperature=1.0) for i in range(3)))
    tight = build(kv_tokens=128)
    if paced_by_steps(tight):
        rows = [constrained(f"regex {i}", seed=i, temperature=1.0) for i in range(3)]
        ends = run(tight, *(replace(row, predicted_tokens=1) for row in rows))
        assert all(same_row(ends[name], end) for name, end in roomy.items())


def test_penalties_and_filters_apply_to_what_is_allowed(engine: Engine) -> None:
    if not paced_by_steps(engine):
        return
    row = constrained(
        "choice",
        temperature=1.0,
        top_k=1,
        top_p=0.1,
        frequency_penalty=1.0,
        repetition_penalty=1.2,
        logit_bias=((ord("z"), 100.0),),
    )
    assert run(engine, row)["choice"].text in ("yes", "no", "perhaps")


def test_a_constraint_that_becomes_too_complex_ends_its_row_alone(engine: Engine) -> None:
    if not paced_by_steps(engine):
        return
    grammar = COMPILER.compile(Constraint("regex", "guided_regex", "(a{1000}){1000}"))
    bad = replace(request("bad", ignore_eos=False, max_tokens=30), grammar=grammar)
    ends = run(engine, bad, request("good"))
    assert ends["bad"].reason is FinishReason.ERROR
    assert not ends["bad"].retryable
    assert "constraint" in str(ends["bad"].error)
    assert ends["good"].reason is FinishReason.LENGTH


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_is_made_to_end_its_reasoning_and_its_constraint_begins(
    build: Build, temperature: float
) -> None:
    """In company of rows that do not reason, whose tokens stay as they were."""
    alone = run(build(), request("free", max_tokens=40, temperature=temperature))["free"]
    reasoning = replace(
        constrained("json", temperature=temperature, max_reasoning_tokens=12), thinking=THINK
    )
    opened = replace(
        reasoning, id="json 1", prompt_token_ids=TOKENIZER.encode("why?<think>\n"), grammar=None
    )
    engine = build()
    if not paced_by_steps(engine):
        assert len(engine.admit([reasoning])) == 1  # an upstream cannot be made to
        return
    ends = run(engine, reasoning, opened, request("free", max_tokens=40, temperature=temperature))
    assert same_row(ends["free"], alone)
    made, free = ends["json"], ends["json 1"]
    assert made.token_ids[:8] == tuple(TOKENIZER.encode("<think>\n"))
    assert made.reasoning.endswith("\n")
    assert re.fullmatch(CONSTRAINTS["json"][2], made.text)
    # Bytes of random weights are no characters; what is forced is.
    for end in (made, free):
        forced = bytes(end.token_ids[12 : 12 + len("\n</think>\n\n")])
        assert forced.decode() == "\n</think>\n\n"
        assert end.reasoning_tokens == 12 + len("\n</think>")
