"""The next token of each row: greedy and sampled rows mixed, each row by its own parameters.

Biases and penalties come first (see `penalties`), then the filters, as transformers' logits
processors and in their order: temperature, top_k, top_p, min_p. A draw depends on the row's logits,
its seed and its step alone: each row turns one uniform number of its own into a token through the
cumulative distribution in vocabulary order.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from millpond.memory_plan import DRAW_ROWS
from worker.engines.base import Sampling, TokenLogprobs
from worker.engines.sequence import Sequence
from worker.engines.transformers.logprobs import RawLogprobs
from worker.engines.transformers.penalties import adjust

# How many of the likeliest tokens are looked at first; most filters end well within.
_FIRST_CANDIDATES = 256


@dataclass(frozen=True, slots=True)
class Output:
    """What a forward pass says of each row's next token: ``logits`` ``[rows, vocab]``, or ``best``,
    the likeliest tokens (None where logits are not finite), or both."""

    logits: torch.Tensor | None
    best: list[int | None] | None = None


def needs_logits(rows: Items[Sequence]) -> bool:
    """Whether the likeliest tokens alone are too little to choose these rows' next ones."""
    return any(
        row.sampling.temperature > 0
        or row.adjusts_logits
        or row.suppressed_token_ids
        or row.sampling.logprobs is not None
        for row in rows
    )


@dataclass(frozen=True, slots=True)
class NextTokens:
    """One entry for each row: its token, None where its logits are not finite, and what the model
    thought of it, None where nobody asked."""

    tokens: list[int | None]
    logprobs: list[TokenLogprobs | None]


def next_tokens(output: Output, rows: Items[Sequence]) -> NextTokens:
    if output.best is not None and not needs_logits(rows):
        return NextTokens(output.best, [None] * len(rows))
    assert output.logits is not None
    raw = RawLogprobs(output.logits, rows)
    tokens = sample(output.logits, rows)
    return NextTokens(tokens, raw.of(tokens))


def sample(logits: torch.Tensor, rows: Items[Sequence]) -> list[int | None]:
    """The next token of each row from ``[rows, vocab]`` logits.

    None for a row whose logits are not finite. Reads the device once.
    """
    logits = adjust(logits, rows)
    _suppress_ends(logits, rows)
    top, tokens = logits.max(dim=-1)
    drawn = [i for i, row in enumerate(rows) if row.sampling.temperature > 0]
    for start in range(0, len(drawn), DRAW_ROWS):
        block = drawn[start : start + DRAW_ROWS]
        index = torch.tensor(block, device=logits.device)
        picked = [rows[i] for i in block]
        tokens[index] = _draw(logits[index].float(), top[index].float(), picked)
    read = torch.stack((tokens, torch.isfinite(top).to(tokens.dtype))).tolist()
    return [token if finite else None for token, finite in zip(*read, strict=True)]


def uniforms(seeds: Items[int], steps: Items[int]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each (seed, step), by SplitMix64; no state, no order."""
    seed = np.asarray(seeds, dtype=np.uint64)
    step = np.asarray(steps, dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = _splitmix64(_splitmix64(seed) + step)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _suppress_ends(logits: torch.Tensor, rows: Items[Sequence]) -> None:
    """Below min_tokens, take the row's end tokens out of the running, in place."""
    at = [(i, t) for i, row in enumerate(rows) for t in row.suppressed_token_ids]
    if at:
        where = torch.tensor(at, device=logits.device)
        logits[where[:, 0], where[:, 1]] = -torch.inf


def _draw(logits: torch.Tensor, top: torch.Tensor, rows: Items[Sequence]) -> torch.Tensor:
    """Sampled tokens of ``[rows, vocab]`` float32 logits with their maxima ``[rows]``."""
    device = logits.device
    params = [row.sampling for row in rows]
    temperature = torch.tensor([p.temperature for p in params], device=device)
    # Less the maximum first: nothing overflows however small the temperature, and sums start at 1.
    scores = (logits - top[:, None]) / temperature[:, None]
    uniform = torch.tensor(
        uniforms([p.seed for p in params], [len(r.token_ids) for r in rows]),
        dtype=torch.float64,
    ).to(device)
    filtered = [i for i, p in enumerate(params) if p.top_k or p.top_p < 1 or p.min_p > 0]
    if not filtered:
        return _invert(scores, uniform)
    if len(filtered) == len(rows):
        return _draw_filtered(scores, uniform, params)
    tokens = _invert(scores, uniform)
    some = torch.tensor(filtered, device=device)
    tokens[some] = _draw_filtered(scores[some], uniform[some], [params[i] for i in filtered])
    return tokens


def _draw_filtered(
    scores: torch.Tensor, uniform: torch.Tensor, params: Items[Sampling]
) -> torch.Tensor:
    """Draw from what the filters keep, looking at the likeliest few first.

    Rows that may keep more than that are drawn again from 16 times as many: a whole vocabulary
    takes a hundred times as long to sort.
    """
    vocab_size = scores.shape[-1]
    count = min(vocab_size, max(_FIRST_CANDIDATES, *(p.top_k + 1 for p in params)))
    tokens, open_rows = _draw_among(scores, uniform, params, count)
    while open_rows:
        count = min(vocab_size, count * 16)
        at = torch.tensor(open_rows, device=scores.device)
        some, still_open = _draw_among(
            scores[at], uniform[at], [params[i] for i in open_rows], count
        )
        tokens[at] = some
        open_rows = [open_rows[i] for i in still_open]
    return tokens


def _invert(scores: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Where the cumulative distribution of softmax(scores) first passes each row's number."""
    cumulative = scores.exp().cumsum(dim=-1, dtype=torch.float64)
    target = uniform[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return place.clamp_(max=scores.shape[-1] - 1)


def _draw_among(
    scores: torch.Tensor, uniform: torch.Tensor, params: Items[Sampling], count: int
) -> tuple[torch.Tensor, list[int]]:
    """Draw from the ``count`` likeliest tokens; also which rows may keep more than those.

    A row's cut is a score, so tokens of equal score are kept or dropped together.
    """
    device = scores.device
    vocab_size = scores.shape[-1]
    top_k = torch.tensor([min(p.top_k, vocab_size) or vocab_size for p in params], device=device)
    top_p = torch.tensor([p.top_p for p in params], device=device, dtype=torch.float64)
    min_p = torch.tensor([p.min_p for p in params], device=device)
    best, token_ids = scores.topk(count, dim=-1)
    weight = best.exp().double()
    within_k = torch.arange(count, device=device) < top_k[:, None]
    total = scores.exp().sum(dim=-1, dtype=torch.float64)
    mass = torch.where(top_k < vocab_size, (weight * within_k).sum(-1), total)
    above = weight.cumsum(-1) - weight
    kept = within_k & (above < (top_p * mass)[:, None]) & (best >= min_p.log()[:, None])
    kept[:, 0] = True
    open_rows = [] if count == vocab_size else kept[:, -1].nonzero()[:, 0].tolist()
    cut = torch.where(kept, best, torch.inf).amin(dim=-1, keepdim=True)
    # In vocabulary order, so that neither the sort nor ``count`` has a say in the draw.
    token_ids, order = token_ids.sort(dim=-1)
    best = best.gather(1, order)
    place = _invert(best.masked_fill(best < cut, -torch.inf), uniform)
    return token_ids.gather(1, place[:, None])[:, 0], open_rows
