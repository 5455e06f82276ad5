"""Log-probabilities are the model's own, whatever the row does with the logits afterwards."""

import pytest
import torch

from tests.integration.test_penalties import VOCAB_SIZE, row
from worker.engines.sampling.sampling import (
    Output,
    needs_logits,
    next_tokens,
    torch_sampler,
)


def logits_of(rows: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return (torch.randn(rows, VOCAB_SIZE, generator=generator) * 4).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_of_the_raw_logits(dtype: torch.dtype) -> None:
    rows = [
        row([1], logprobs=5),
        row([1]),
        row([1], [4, 4], logprobs=5, temperature=0.7, top_k=3, repetition_penalty=2.0),
        row([1], logprobs=0, temperature=3.0, logit_bias=((9, 50.0),)),
        row([1], logprobs=20, ignore_eos=False, min_tokens=9),
    ]
    logits = logits_of(len(rows), dtype)
    reference = logits.float().log_softmax(-1)
    drawn = next_tokens(Output(logits), rows, torch_sampler)
    assert drawn.logprobs[1] is None
    for i in (0, 2, 3, 4):
        told, token = drawn.logprobs[i], drawn.tokens[i]
        assert told is not None
        assert told.logprob == pytest.approx(float(reference[i, token]), abs=1e-5)
        values, ids = reference[i].topk(rows[i].sampling.logprobs)
        assert [score for _, score in told.top] == pytest.approx(values.tolist(), abs=1e-5)
        assert {t for t, _ in told.top} == set(ids.tolist()) or dtype is torch.bfloat16
    assert drawn.tokens[3] == 9
    assert drawn.logprobs[3].logprob < -1  # what forced it is not in what the model thought


def test_they_do_not_depend_on_what_the_others_ask_for() -> None:
    """With many equal logits, too, as half precision makes them."""
    logits = logits_of(3).round()
    rows = [row([1], logprobs=20), row([1], logprobs=2, temperature=1.0), row([1], logprobs=0)]
    together = next_tokens(Output(logits.clone()), rows, torch_sampler).logprobs
    for i, one in enumerate(rows):
        assert next_tokens(Output(logits[i : i + 1].clone()), [one], torch_sampler).logprobs == [
            together[i]
        ]


def test_a_row_without_finite_logits_has_none_and_the_others_have_theirs() -> None:
    logits = logits_of(2)
    logits[0, 3] = float("nan")
    drawn = next_tokens(Output(logits), [row([1], logprobs=1), row([1], logprobs=1)], torch_sampler)
    assert drawn.tokens[0] is None
    assert drawn.logprobs[1].top[0][0] == drawn.tokens[1]


def test_greedy_rows_need_logits_only_to_tell_logprobs() -> None:
    assert not needs_logits(row([1]))
    assert needs_logits(row([1], logprobs=0))
    drawn = next_tokens(Output(None, [3, None]), [row([1]), row([1])], torch_sampler)
    assert (drawn.tokens, drawn.logprobs) == ([3, None], [None, None])
