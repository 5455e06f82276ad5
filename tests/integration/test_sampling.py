"""Sampling against transformers' own logits processors, on the same logits."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from millpond.models.tokenization import ByteTokenizer
from worker.engines.base import GenerationRequest, Sampling
from worker.engines.sampling.sampling import sample, uniforms
from worker.engines.scheduling.row import Row

VOCAB_SIZE = 4000

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 0.9, "top_k": 700},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 2.0, "top_k": 50, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 3.0, "top_p": 0.999},
    {"temperature": 1.0, "top_p": 1e-9},
]


def row(seed: int = 0, **sampling: Any) -> Row:
    values = {"max_tokens": 10, **sampling}
    return Row(GenerationRequest("r", [1], Sampling(seed=seed, **values)), ByteTokenizer())


def reference_probabilities(logits: torch.Tensor, **sampling: Any) -> torch.Tensor:
    processors = LogitsProcessorList([TemperatureLogitsWarper(sampling["temperature"])])
    if sampling.get("top_k"):
        processors.append(TopKLogitsWarper(sampling["top_k"]))
    if sampling.get("top_p", 1.0) < 1.0:
        processors.append(TopPLogitsWarper(sampling["top_p"]))
    if sampling.get("min_p"):
        processors.append(MinPLogitsWarper(sampling["min_p"]))
    scores: torch.Tensor = processors(torch.zeros((1, 1), dtype=torch.long), logits[None])
    return scores.double().softmax(-1)[0]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_draws_follow_the_processed_distribution(sampling: dict[str, Any]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(VOCAB_SIZE) * 3
    expected = reference_probabilities(logits, **sampling)
    draws = 4000
    rows = [row(seed, **sampling) for seed in range(draws)]
    tokens = sample(logits.repeat(draws, 1), rows)
    counts = torch.bincount(torch.tensor(tokens), minlength=VOCAB_SIZE)
    assert not counts[expected == 0].any(), "a filtered token was drawn"
    # By inverse CDF, each row's number says which token the reference would give it.
    numbers = torch.tensor(uniforms(range(draws), [0] * draws))
    wanted = torch.searchsorted(expected.cumsum(0), numbers, right=True)
    agreement = (wanted == torch.tensor(tokens)).double().mean()
    assert agreement > 0.998  # float32 against float64 at the edges between tokens


def test_a_row_draws_the_same_whatever_the_others_do() -> None:
    torch.manual_seed(1)
    logits = torch.randn(len(SETTINGS), VOCAB_SIZE) * 3
    rows = [row(seed, **s) for seed, s in enumerate(SETTINGS)]
    together = sample(logits.clone(), [*rows])
    alone = [sample(logits[i : i + 1].clone(), [r])[0] for i, r in enumerate(rows)]
    assert together == alone


def test_greedy_rows_take_the_first_maximum_beside_sampled_ones() -> None:
    logits = torch.zeros(3, 50)
    logits[0, [7, 9]] = 5.0
    logits[2, 3] = 1.0
    tokens = sample(logits, [row(), row(temperature=1.0), row()])
    assert (tokens[0], tokens[2]) == (7, 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logits_that_are_not_finite_yield_no_token_for_that_row_alone(
    bad: float, temperature: float
) -> None:
    logits = torch.randn(3, 50)
    logits[1, 20] = bad
    tokens = sample(logits, [row(temperature=temperature, top_p=0.9) for _ in range(3)])
    assert tokens[1] is None
    assert None not in (tokens[0], tokens[2])


def test_a_row_of_minus_infinity_alone_yields_no_token() -> None:
    logits = torch.full((1, 50), -torch.inf)
    assert sample(logits, [row(temperature=0.7)]) == [None]


def test_a_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    logits = torch.randn(2, 50) * 30
    greedy = sample(logits.clone(), [row(), row()])
    assert sample(logits, [row(temperature=1e-30), row(temperature=1e-30, top_p=0.5)]) == greedy


def test_end_tokens_are_suppressed_below_min_tokens() -> None:
    logits = torch.zeros(2, 300)
    logits[:, ByteTokenizer.EOS] = 9.0
    logits[:, 5] = 8.0
    assert sample(logits, [row(min_tokens=2), row()]) == [5, ByteTokenizer.EOS]


def test_uniform_numbers_are_uniform_and_depend_on_seed_and_step_alone() -> None:
    numbers = uniforms(range(5000), [3] * 5000)
    assert 0 <= numbers.min() < numbers.max() < 1
    assert np.histogram(numbers, bins=10)[0] == pytest.approx(500, abs=100)
    steps = uniforms([2**63 - 1] * 5000, range(5000))
    assert np.histogram(steps, bins=10)[0] == pytest.approx(500, abs=100)
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1]) < 0.05
    assert uniforms([9], [4])[0] == uniforms([1, 9], [4, 4])[1]
