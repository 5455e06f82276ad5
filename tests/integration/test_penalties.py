"""Biases and penalties against transformers' own logits processors, and against their definitions."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from millpond.models.tokenization import ByteTokenizer
from worker.engines.base import GenerationRequest, Sampling
from worker.engines.sampling.penalties import adjust
from worker.engines.sampling.sampling import needs_logits, sample, uniforms
from worker.engines.scheduling.row import Row

VOCAB_SIZE = 257


def row(prompt: list[int], written: Sequence[int] = (), **sampling: Any) -> Row:
    values = {"max_tokens": 1000, "seed": 0, "ignore_eos": True, **sampling}
    made = Row(GenerationRequest("r", prompt, Sampling(**values)), ByteTokenizer())
    for token in written:
        made.append(token)
    return made


def processors(sampling: Sampling) -> LogitsProcessorList:
    """What transformers would build, in the order in which its generate() does."""
    found = LogitsProcessorList()
    if sampling.logit_bias:
        found.append(SequenceBiasLogitsProcessor([[[t], b] for t, b in sampling.logit_bias]))
    if sampling.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature:
        found.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            found.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            found.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            found.append(MinPLogitsWarper(sampling.min_p))
    return found


def expected_token(row: Row, logits: torch.Tensor) -> int:
    """The reference's choice from one row's logits, with this row's own random number."""
    seen = torch.tensor([[*row.prompt_token_ids, *row.token_ids]])
    scores = processors(row.sampling)(seen, logits[None].clone())[0]
    if not row.sampling.temperature:
        return int(scores.argmax())
    number = torch.tensor(uniforms([row.sampling.seed], [len(row.token_ids)]))
    cumulative = scores.double().softmax(-1).cumsum(0)
    return int(torch.searchsorted(cumulative, number, right=True)[0])


TOKENS = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=12)
SAMPLINGS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.3, 1.0, 1.7]),
        "top_k": st.sampled_from([1, 7, 60]),
        "top_p": st.sampled_from([0.2, 0.9]),
        "min_p": st.sampled_from([0.02, 0.3]),
        "repetition_penalty": st.sampled_from([0.5, 1.1, 2.0]),
        "logit_bias": st.dictionaries(
            st.integers(0, VOCAB_SIZE - 1), st.floats(-100, 100, width=32), max_size=4
        ).map(lambda biases: tuple(biases.items())),
        "seed": st.integers(0, 9),
    },
)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.lists(SAMPLINGS, min_size=1, max_size=6), st.randoms())
def test_tokens_are_those_of_transformers_processors_in_any_order_and_company(
    data: st.DataObject, samplings: list[dict[str, Any]], order: random.Random
) -> None:
    rows = [row([1, *data.draw(TOKENS)], data.draw(TOKENS), **s) for s in samplings]
    logits = torch.randn(len(rows), VOCAB_SIZE, generator=torch.Generator().manual_seed(7)) * 4
    wanted = [expected_token(r, one) for r, one in zip(rows, logits, strict=True)]
    places = list(range(len(rows)))
    order.shuffle(places)
    assert sample(logits[places], [rows[i] for i in places]) == [wanted[i] for i in places]
    assert [sample(logits[i : i + 1].clone(), [rows[i]])[0] for i in places] == [
        wanted[i] for i in places
    ]


@settings(max_examples=40, deadline=None)
@given(TOKENS, TOKENS, st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_count_the_output_alone(
    prompt: list[int], written: list[int], presence: float, frequency: float
) -> None:
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(3)) * 4
    expected = logits[0].double()
    for token, count in Counter(written).items():
        expected[token] -= presence + frequency * count
    penalized = row([1, *prompt], written, presence_penalty=presence, frequency_penalty=frequency)
    found = adjust(logits.clone(), [penalized])[0].double()
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_repetition_penalty_is_exactly_transformers_own() -> None:
    torch.manual_seed(2)
    logits = torch.randn(1, VOCAB_SIZE) * 5
    reference = RepetitionPenaltyLogitsProcessor(1.17)(torch.tensor([[3, 4, 4, 9]]), logits.clone())
    assert torch.equal(adjust(logits, [row([3, 4], [4, 9], repetition_penalty=1.17)]), reference)


def test_half_precision_logits_are_adjusted_in_single() -> None:
    logits = torch.full((2, VOCAB_SIZE), 100.0, dtype=torch.bfloat16)
    found = adjust(logits, [row([1]), row([1], logit_bias=((9, 0.125),))])
    assert found.dtype is torch.float32
    assert found[1, 9] == 100.125  # bfloat16 has no number between 100 and 100.5
    assert sample(logits, [row([1]), row([1], logit_bias=((9, 0.125),))]) == [0, 9]


def test_rows_without_penalties_are_untouched_and_greedy_ones_need_no_logits() -> None:
    logits = torch.randn(3, VOCAB_SIZE, dtype=torch.bfloat16)
    plain = [row([1]) for _ in range(3)]
    assert adjust(logits, plain) is logits
    assert not any(map(needs_logits, plain))
    for sampling in (
        {"repetition_penalty": 1.1},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -0.1},
        {"logit_bias": ((5, 1.0),)},
    ):
        assert needs_logits(row([1], **sampling))
    beside = torch.randn(2, VOCAB_SIZE)
    kept = beside[0].clone()
    adjust(beside, [row([1]), row([1], [4], presence_penalty=2.0, repetition_penalty=3.0)])
    assert torch.equal(beside[0], kept)


@pytest.mark.parametrize("bias", [-100.0, 100.0])
def test_a_bias_bans_a_token_or_forces_it(bias: float) -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    logits[0, 7] = 5.0
    [token] = sample(logits, [row([1], logit_bias=((7 if bias < 0 else 30, bias),))])
    assert token == (0 if bias < 0 else 30)


def test_a_bias_does_not_bring_back_an_end_token_below_min_tokens() -> None:
    logits = torch.zeros(1, VOCAB_SIZE)
    kept = row([1], ignore_eos=False, min_tokens=2, logit_bias=((ByteTokenizer.EOS, 100.0),))
    assert sample(logits, [kept]) == [0]
