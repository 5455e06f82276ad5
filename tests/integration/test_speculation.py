"""Drafts make rows faster, and change none of their tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from millpond.messages import FinishReason
from millpond.messages.constraints import Constraint
from millpond.models.grammars import GrammarCompiler
from millpond.models.tokenization import ByteTokenizer
from tests.integration import test_native as tiny
from worker.engines.base import Finished, GenerationRequest
from worker.engines.model.engine import TransformersEngine
from worker.engines.paging.pages import PAGE_TOKENS
from worker.engines.speculation.speculator import Speculator

kernels, load = tiny.kernels, tiny.load

TEXT = list(b"the miller grinds the corn and the miller's wife bakes the bread. " * 2)
# Each with its own way to choose tokens or to end.
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 0.7, "top_p": 0.9, "top_k": 40},
    "hot": {"temperature": 1.5, "min_p": 0.02},
    "penalties": {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "temperature": 0.5,
    },
    "bias": {"logit_bias": ((65, 4.0), (66, -3.0)), "temperature": 0.8},
    "min_tokens": {"min_tokens": 30, "stop_token_ids": tuple(range(0, 256, 2))},
    "stop": {"stop": ("a", "\x00"), "temperature": 1.0},
    "logprobs": {"logprobs": 3, "temperature": 0.4},
    "loop": {"loop_repeats": 4},
    "grammar": {"temperature": 1.0, "ignore_eos": False},
}
GRAMMAR = GrammarCompiler(ByteTokenizer()).compile(
    Constraint("regex", "regex", "(the miller grinds [a-f]+, ){9}")
)


def rows_of(kinds: Iterable[str], tokens: int = 150) -> list[GenerationRequest]:
    rows = [
        tiny.request(kind, TEXT[i:], tokens, seed=i, **KINDS[kind]) for i, kind in enumerate(kinds)
    ]
    return [replace(row, grammar=GRAMMAR) if row.id == "grammar" else row for row in rows]


def outcome(ends: dict[str, Finished]) -> dict[str, tuple[Any, ...]]:
    return {i: (end.token_ids, end.text, end.reason, end.logprobs) for i, end in ends.items()}


def run(engine: TransformersEngine, rows: Sequence[GenerationRequest]) -> dict[str, Finished]:
    assert engine.admit(rows) == []
    ends = tiny.drain(engine)
    assert engine._cache.allocated_tokens == 0
    return ends


def preemptions(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the rows that it preempts from now on."""
    preempted: list[str] = []
    preempt = engine._scheduler.preempt
    monkeypatch.setattr(
        engine._scheduler, "preempt", lambda row: (preempted.append(row.id), preempt(row))[1]
    )
    return preempted


def accepted(ends: dict[str, Finished]) -> int:
    return sum(end.stats.accepted_tokens for end in ends.values())


@pytest.mark.parametrize(
    ("family", "weights"), [("llama", "auto"), ("llama", "int8"), ("mistral", "auto")]
)
def test_every_kind_of_row_is_as_without(family: str, weights: str, load: Any) -> None:
    """The second time each row finds its own output among the finished ones."""
    loaded = load(family, weights=weights)
    rows = rows_of(KINDS)
    plain = run(tiny.engine_of(loaded, len(rows), speculative_tokens=0), rows)
    assert accepted(plain) == 0
    engine = tiny.engine_of(loaded, len(rows))
    first, second = run(engine, rows), run(engine, rows)

    assert outcome(first) == outcome(plain) == outcome(second)
    assert accepted(first) > 0
    for end in second.values():
        stats = end.stats
        assert stats.accepted_tokens <= stats.drafted_tokens
        if len(end.token_ids) > 20:
            assert stats.accepted_tokens > 0, end.id


def test_a_row_that_was_answered_before_needs_few_steps(load: Any) -> None:
    loaded = load("llama")
    engine = tiny.engine_of(loaded, 1)
    steps = []
    for _ in range(2):
        assert engine.admit(rows_of(["sampled"], 300)) == []
        steps.append(0)
        while engine.num_rows:
            engine.step()
            steps[-1] += 1
    assert steps[1] < steps[0] / 5


def test_rows_that_come_and_go_and_long_prompts_beside_them(load: Any) -> None:
    """Prefill in chunks between steps with drafts; one row is cancelled in the middle."""
    loaded = load("llama")
    outcomes, drafted = [], 0
    for tokens in (0, 16):
        engine = tiny.engine_of(
            loaded, 4, speculative_tokens=tokens, max_batched_tokens=2 * PAGE_TOKENS
        )
        assert engine.admit(rows_of(["greedy", "sampled"])) == []
        for _ in range(5):
            engine.step()
        late = tiny.request("late", TEXT * 3, 60, temperature=0.6)
        assert engine.admit([late, tiny.request("gone", TEXT * 3, 60)]) == []
        for _ in range(6):
            engine.step()
        engine.cancel(["gone"])
        ends = tiny.drain(engine)
        assert ends.pop("gone").reason is FinishReason.CANCELLED
        outcomes.append(outcome(ends))
        drafted += accepted(ends)
    assert outcomes[0] == outcomes[1]
    assert drafted > 0


def test_rows_that_outgrow_the_cache_are_preempted_and_as_without(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load("llama")
    rows = [
        GenerationRequest(row.id, row.prompt_token_ids, row.sampling, predicted_tokens=4)
        for row in rows_of(["greedy", "sampled", "penalties", "loop"])
    ]
    results = []
    for tokens in (0, 16):
        engine = tiny.engine_of(loaded, 4, kv_tokens=700, speculative_tokens=tokens)
        preempted = preemptions(engine, monkeypatch)
        results.append(run(engine, rows))
        assert preempted
    assert outcome(results[0]) == outcome(results[1])
    assert accepted(results[1]) > 0


def test_a_wrong_draft_leaves_nothing_for_later_rows(load: Any) -> None:
    """Pages that hold keys of rejected tokens are shared only once the right ones are in their place."""
    loaded = load("llama")
    engine = tiny.engine_of(loaded, 2)
    engine._speculator.drafts = lambda rows, room: {  # type: ignore[method-assign]
        row.id: [7] * min(16, room(row)) for row in rows if room(row) > 0
    }
    engine._speculator.verified = lambda *_, **__: None  # type: ignore[method-assign]
    first = run(engine, rows_of(["greedy"]))["greedy"]
    engine._speculator = Speculator(0)
    again = tiny.request("again", [*TEXT, *first.token_ids[:-20]], 20)
    plain = tiny.engine_of(loaded, 2, speculative_tokens=0, prefix_cache_tokens=0)
    assert run(engine, [again])["again"].token_ids == first.token_ids[-20:]
    assert run(plain, [again])["again"].token_ids == first.token_ids[-20:]


def test_a_draft_that_is_not_finite_harms_no_row(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys and values are scrubbed, and the row is read again."""
    loaded = load("llama")
    rows = rows_of(["greedy", "sampled"], 100)
    plain = run(tiny.engine_of(loaded, 2, speculative_tokens=0), rows)
    engine = tiny.engine_of(loaded, 2)
    poison = 251
    assert not any(poison in end.token_ids for end in plain.values())
    # What ended before was answered so: right up to the poison.
    known = plain["greedy"].token_ids
    engine._speculator._finished.add((None, ""), [*known[:30], *[poison] * 20])
    [embedding] = [
        t for t in loaded.native.model._kept if t.shape == (tiny.COMMON["vocab_size"], 96)
    ][:1]
    preempted = preemptions(engine, monkeypatch)
    before = embedding[poison].clone()
    embedding[poison] = float("nan")
    try:
        ends = run(engine, rows)
    finally:
        embedding[poison] = before
    assert preempted == ["greedy"]
    assert outcome(ends) == outcome(plain)
