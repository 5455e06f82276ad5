"""What every engine promises, run over the simulated engine, a tiny random Llama and an upstream."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from millpond.messages import FinishReason
from millpond.models.tokenization import ByteTokenizer
from tests.contract.engines import (
    LOOP,
    LOOPING,
    TOKENIZER,
    Build,
    Rows,
    drain,
    paced_by_steps,
    request,
    run,
    same_row,
)
from worker.engines.base import Engine, GenerationRequest, RejectionCode


def test_it_says_what_computes(engine: Engine) -> None:
    assert engine.info.backend in ("simulated", "remote", "torch cpu")
    assert engine.info.backend.split()[0] in (engine.info.engine, "torch")


def test_each_admitted_row_ends_once_and_the_engine_is_empty_again(engine: Engine) -> None:
    before = engine.capacity()
    finished = run(engine, *(request(f"r{i}", "x" * (i + 1)) for i in range(8)))
    assert set(finished) == {f"r{i}" for i in range(8)}
    assert engine.num_rows == 0
    assert engine.capacity() == before
    assert engine.step() == []


def test_rows_stop_at_their_own_max_tokens(engine: Engine) -> None:
    finished = run(engine, *(request(f"r{n}", max_tokens=n) for n in (1, 2, 9)))
    for n in (1, 2, 9):
        assert len(finished[f"r{n}"].token_ids) == n
        assert finished[f"r{n}"].reason is FinishReason.LENGTH


def test_stats_tell_how_the_row_was_made(engine: Engine) -> None:
    finished = run(engine, request("a", max_tokens=3), request("b", max_tokens=5))
    stats = finished["b"].stats
    assert stats.group_rows == 2
    if paced_by_steps(engine):
        assert stats.batch_rows == pytest.approx((2 + 2 + 1 + 1) / 4)
    assert 1 <= stats.batch_rows <= 2


def test_capacity_counts_rows_and_reserved_tokens(engine: Engine) -> None:
    before = engine.capacity()
    engine.admit([request("a", "x" * 10, max_tokens=20)])
    after = engine.capacity()
    assert before.free_slots - after.free_slots == 1
    assert before.free_tokens - after.free_tokens == 30


def test_the_texts_of_a_prompt_can_be_cut_one_by_one(build: Build) -> None:
    """As a vote does when it is decided: the others are those that they would have been."""
    engine = build(slots=4, kv_tokens=None)
    texts = [
        request(f"t{i}", "same", seed=i, temperature=1.0, max_tokens=8 + 50 * (i % 2))
        for i in range(4)
    ]
    whole = run(engine, *texts)
    assert engine.admit(texts) == []
    rows = Rows()
    while "t0" not in rows.finished:
        rows.take(engine)
    engine.cancel(["t1"])
    while engine.num_rows:
        rows.take(engine)
    assert rows.finished["t1"].reason is FinishReason.CANCELLED
    assert whole["t1"].text.startswith(rows.finished["t1"].text)
    for id in ("t0", "t2", "t3"):
        assert same_row(rows.finished[id], whole[id])


def test_a_cancelled_row_ends_at_the_next_step_waiting_or_running(build: Build) -> None:
    engine = build(slots=3)
    rows = Rows()
    engine.admit([request("running", max_tokens=100), request("stays", max_tokens=100)])
    rows.take(engine)
    rows.take(engine)
    engine.admit([request("waiting", max_tokens=100)])
    engine.cancel(["running", "waiting", "unknown"])
    rows.take(engine)
    assert {i: f.reason for i, f in rows.finished.items()} == {
        "running": FinishReason.CANCELLED,
        "waiting": FinishReason.CANCELLED,
    }
    if paced_by_steps(engine):
        assert len(rows.finished["running"].token_ids) == 2
    assert rows.finished["waiting"].token_ids == ()
    engine.cancel(["running"])
    while engine.num_rows:
        rows.take(engine)
    assert rows.finished["stays"].reason is FinishReason.LENGTH


def test_a_freed_slot_goes_to_the_next_row_while_others_run(build: Build) -> None:
    engine = build(slots=2)
    rows = Rows()
    engine.admit([request("long", max_tokens=30), request("short", max_tokens=2)])
    while "short" not in rows.finished:
        rows.take(engine)
    assert engine.capacity().free_slots == 1
    assert engine.admit([request("next", max_tokens=2)]) == []
    while "next" not in rows.finished:
        rows.take(engine)
    assert "long" not in rows.finished


def test_stop_strings_end_the_row_and_stay_out_of_the_text(build: Build) -> None:
    reference = run(build(), request("r", max_tokens=24))["r"]
    stop = reference.text[6:9]
    cut = run(build(), request("r", max_tokens=24, stop=(stop, "never there")))["r"]
    assert cut.reason is FinishReason.STOP
    assert cut.text == reference.text[: reference.text.index(stop)]
    assert cut.token_ids == reference.token_ids[: len(cut.token_ids)]


def test_stop_tokens_and_the_end_token_end_the_row(build: Build) -> None:
    reference = run(build(), request("r", max_tokens=24))["r"].token_ids
    token = reference[10]
    first = reference.index(token)
    cut = run(build(), request("r", max_tokens=24, stop_token_ids=(token,)))["r"]
    assert cut.reason is FinishReason.STOP
    assert cut.token_ids == reference[: first + 1]
    assert cut.text == TOKENIZER.decode(reference[:first])


def test_nothing_ends_a_row_before_min_tokens(build: Build) -> None:
    everything = tuple(range(ByteTokenizer.vocab_size - 1))
    row = run(build(), request("r", stop=tuple("abcdefghijklmnopqrstuvwxyz "), min_tokens=5))["r"]
    assert len(row.token_ids) >= 5
    row = run(build(), request("r", max_tokens=9, stop_token_ids=everything))["r"]
    assert len(row.token_ids) == 1


def test_a_row_that_repeats_itself_can_be_ended(build: Build) -> None:
    rows = run(
        build(),
        request("ended", LOOP, max_tokens=200, loop_repeats=5, **LOOPING),
        request("left", LOOP, max_tokens=200, **LOOPING),
        request("other", max_tokens=40, loop_repeats=20),
    )
    assert rows["ended"].reason is FinishReason.LOOP
    assert 32 <= len(rows["ended"].token_ids) < 64
    left = rows["left"]
    assert left.reason is FinishReason.LENGTH
    assert left.token_ids[: len(rows["ended"].token_ids)] == rows["ended"].token_ids
    assert rows["other"].reason is FinishReason.LENGTH


def test_bad_requests_are_rejected_and_touch_no_other(engine: Engine) -> None:
    good = request("good")
    rejections = engine.admit(
        [
            replace(request("empty"), prompt_token_ids=[]),
            replace(request("vocabulary"), prompt_token_ids=[1, 257]),
            replace(request("negative"), prompt_token_ids=[-1]),
            request("stop ids", stop_token_ids=(999,)),
            request("bias", logit_bias=((257, 1.0),)),
            request("no tokens", max_tokens=0),
            replace(request("adapter"), adapter="unknown"),
            good,
            good,
        ]
    )
    assert [r.code for r in rejections] == [RejectionCode.INVALID] * 8
    assert all(r.message for r in rejections)
    assert set(drain(engine)) == {"good"}


def test_a_row_that_never_fits_is_told_what_would(build: Build) -> None:
    engine = build(kv_tokens=100)
    too_much, too_long = engine.admit(
        [request("a", "x" * 40, max_tokens=61), request("b", "x" * 100, max_tokens=1)]
    )
    assert too_much.code is too_long.code is RejectionCode.DOES_NOT_FIT
    assert "max_tokens 60 would fit" in too_much.message
    assert "99 tokens would fit" in too_long.message
    assert engine.admit([request("a", "x" * 40, max_tokens=60)]) == []


def test_a_row_without_room_now_is_told_so_and_fits_later(build: Build) -> None:
    engine = build(slots=2, kv_tokens=100)
    assert engine.admit([request("a", "x" * 40, max_tokens=20)]) == []
    (tokens,) = engine.admit([request("b", "x" * 40, max_tokens=20)])
    assert tokens.code is RejectionCode.NO_CAPACITY
    assert engine.admit([request("c", max_tokens=2)]) == []
    (slots,) = engine.admit([request("d", max_tokens=2)])
    assert slots.code is RejectionCode.NO_CAPACITY
    drain(engine)
    assert engine.admit([request("b", "x" * 40, max_tokens=20)]) == []


def test_what_is_predicted_is_what_is_reserved(engine: Engine) -> None:
    before = engine.capacity().free_tokens
    engine.admit([replace(request("a", "x" * 10, max_tokens=200), predicted_tokens=20)])
    assert before - engine.capacity().free_tokens == 30


PENALIZED = {
    "repetition_penalty": 1.3,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "logit_bias": ((65, 2.0), (66, -100.0)),
}


def test_wrong_predictions_change_no_row(build: Build) -> None:
    """Four rows that would need 640 tokens in a cache of 200: the younger ones wait and go on."""
    rows = [
        request(f"r{i}", "x" * 40, max_tokens=120, temperature=0.7, seed=i, **PENALIZED)
        for i in range(4)
    ]
    alone = build(slots=1)
    small = build(slots=4, kv_tokens=200)
    finished = run(small, *(replace(row, predicted_tokens=5) for row in rows))
    for row in rows:
        assert same_row(finished[row.id], run(alone, row)[row.id])
    assert small.capacity().free_tokens == 200


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0.9, "top_p": 0.95}, {"temperature": 0.9, **PENALIZED}],
    ids=["filtered", "penalized"],
)
def test_a_seed_gives_the_same_text_in_any_company(build: Build, sampling: Any) -> None:
    row = request("r", "the same prompt", seed=5, **sampling)
    alone = run(build(), row)["r"]
    others: Sequence[GenerationRequest] = [
        request("a", "x" * 90, temperature=1.5, seed=6),
        request("b", "y", top_k=3, temperature=0.5, **PENALIZED),
        request("c", "zz"),
        request("d", "the same prompt", repetition_penalty=1.1),
    ]
    assert same_row(run(build(), others[0], row, *others[1:])["r"], alone)
    late = build()
    rows = Rows()
    late.admit(others)
    rows.take(late)
    rows.take(late)
    late.admit([row])
    while late.num_rows:
        rows.take(late)
    assert same_row(rows.finished["r"], alone)
    other_seed = replace(row, sampling=replace(row.sampling, seed=6))
    assert not same_row(run(build(), other_seed)["r"], alone)


def test_logprobs_are_told_for_each_token_when_asked_for(build: Build) -> None:
    rows = run(
        build(),
        request("greedy", logprobs=4),
        request("sampled", temperature=1.5, logprobs=4, seed=3),
        request("bare", logprobs=0),
        request("plain"),
    )
    assert rows["plain"].logprobs is None
    bare = rows["bare"].logprobs
    assert bare is not None
    assert all(told.top == () for told in bare)
    for name in ("greedy", "sampled"):
        row = rows[name]
        assert row.logprobs is not None
        for token_id, told in zip(row.token_ids, row.logprobs, strict=True):
            scores = [score for _, score in told.top]
            assert 1 <= len(scores) <= 4
            assert scores == sorted(scores, reverse=True)
            assert all(score <= 0 for score in scores)
            assert sum(math.exp(score) for score in scores) < 1.0001
            if token_id in dict(told.top):
                assert dict(told.top)[token_id] == told.logprob
            if name == "greedy":
                assert told.top[0][0] == token_id


def test_logprobs_change_no_token(build: Build) -> None:
    for sampling in ({}, {"temperature": 0.9, "seed": 3}, {"repetition_penalty": 1.5}):
        plain = run(build(), request("r", **sampling))["r"]
        assert same_row(run(build(), request("r", logprobs=2, **sampling))["r"], plain)


def test_rows_of_one_prompt_are_each_their_own(build: Build) -> None:
    """As those of a job that asks for several texts; an engine may read their prompt once."""
    siblings = [
        request("a", "one prompt", temperature=1.2, seed=1, max_tokens=30),
        request("b", "one prompt", temperature=1.2, seed=2, max_tokens=9),
        request("c", "one prompt", max_tokens=20, logprobs=2, repetition_penalty=1.2),
        request("d", "one prompt", temperature=1.2, seed=1, max_tokens=40, stop=("e",)),
    ]
    together = run(build(), request("x", "another"), *siblings, request("y", "one promp"))
    for row in siblings:
        assert same_row(together[row.id], run(build(), row)[row.id])
    small = build(kv_tokens=100)
    predicted = [replace(row, predicted_tokens=2) for row in siblings]
    preempted = run(small, *predicted)
    for row in siblings:
        assert same_row(preempted[row.id], together[row.id])


def test_greedy_text_needs_no_seed(build: Build) -> None:
    one = run(build(), request("r", seed=1))["r"]
    assert same_row(run(build(), request("r", seed=2))["r"], one)


@pytest.mark.parametrize("seed", range(3))
def test_any_arrivals_and_cancels_leave_the_other_rows_alone(build: Build, seed: int) -> None:
    rng = random.Random(seed)
    requests = [
        request(
            f"r{i}",
            "p" * rng.randint(1, 120),
            max_tokens=rng.randint(1, 40),
            temperature=rng.choice([0.0, 0.8]),
            seed=i,
            ignore_eos=rng.random() < 0.5,
        )
        for i in range(24)
    ]
    to_cancel = set(rng.sample([r.id for r in requests], 5))
    waiting, rows, engine = list(requests), Rows(), build(slots=5)
    while waiting or engine.num_rows:
        group = waiting[: rng.randint(0, engine.capacity().free_slots)]
        del waiting[: len(group)]
        if group:
            assert engine.admit(group) == []
        if rng.random() < 0.2:
            engine.cancel(sorted(to_cancel))
        rows.take(engine)
    assert set(rows.finished) == {r.id for r in requests}
    alone = build(slots=1)
    for r in requests:
        end = rows.finished[r.id]
        reference = run(alone, r)[r.id]
        if end.reason is FinishReason.CANCELLED:
            assert r.id in to_cancel
            assert end.token_ids == reference.token_ids[: len(end.token_ids)]
        else:
            assert same_row(end, reference)


def test_warm_up_leaves_nothing_behind(engine: Engine) -> None:
    before = engine.capacity()
    engine.warm_up()
    assert engine.capacity() == before
    assert engine.step() == []
    assert engine.info.slots == 8
