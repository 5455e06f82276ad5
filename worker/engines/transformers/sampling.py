"""The next token of each row: greedy and sampled rows mixed, each row by its own parameters.

Biases and penalties come first (see `penalties`), then the filters, as transformers' logits
processors and in their order: temperature, top_k, top_p, min_p. A draw depends on the row's logits,
its seed and its step alone: each row turns one uniform number of its own into a token through the
cumulative distribution in vocabulary order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from millpond.memory_plan import DRAW_ROWS
from worker.engines.base import Sampling, TokenLogprobs
from worker.engines.sequence import Row
from worker.engines.transformers.logprobs import RawLogprobs
from worker.engines.transformers.penalties import adjust
from worker.engines.transformers.transfer import to_device

# How many of the likeliest tokens are looked at first; most filters end well within.
_FIRST_CANDIDATES = 256


@dataclass(frozen=True, slots=True)
class Output:
    """What a forward pass says of each row's next token: ``logits`` ``[rows, vocab]``, or ``best``,
    the likeliest tokens (None where logits are not finite), or both."""

    logits: torch.Tensor | None
    best: list[int | None] | None = None

    def of(self, places: Sequence[int]) -> "Output":
        """What it says of the rows at these places, which may repeat."""
        return Output(
            None if self.logits is None else self.logits[list(places)],
            None if self.best is None else [self.best[place] for place in places],
        )


def needs_logits(rows: Sequence[Row]) -> bool:
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


def next_tokens(output: Output, rows: Sequence[Row]) -> NextTokens:
    if output.best is not None and not needs_logits(rows):
        return NextTokens(output.best, [None] * len(rows))
    assert output.logits is not None
    raw = RawLogprobs(output.logits, rows)
    tokens = sample(output.logits, rows)
    return NextTokens(tokens, raw.of(tokens))


def sample(logits: torch.Tensor, rows: Sequence[Row]) -> list[int | None]:
    """The next token of each row from ``[rows, vocab]`` logits.

    None for a row whose logits are not finite. Reads the device once, and once more for each time that
    some row's filters keep more tokens than were looked at: those rows are drawn again from 16 times
    as many, for a whole vocabulary takes a hundred times as long to sort.
    """
    logits = adjust(logits, rows)
    _suppress_ends(logits, rows)
    top, tokens = logits.max(dim=-1)
    finite, undecided = torch.isfinite(top), torch.zeros_like(tokens)
    drawn = [i for i, row in enumerate(rows) if row.sampling.temperature > 0]
    candidates = _FIRST_CANDIDATES
    while True:
        for start in range(0, len(drawn), DRAW_ROWS):
            block = drawn[start : start + DRAW_ROWS]
            index = to_device(block, logits.device)
            tokens[index], undecided[index] = _draw(
                logits[index].float(), top[index].float(), [rows[i] for i in block], candidates
            )
        read = torch.stack((tokens, finite, undecided)).tolist()
        drawn = [i for i, more in enumerate(read[2]) if more]
        if not drawn:
            return [token if ok else None for token, ok in zip(*read[:2], strict=True)]
        candidates *= 16


def uniforms(seeds: Sequence[int], steps: Sequence[int]) -> npt.NDArray[np.float64]:
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


def _suppress_ends(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    """Below min_tokens, take the row's end tokens out of the running, in place."""
    at = [(i, t) for i, row in enumerate(rows) for t in row.suppressed_token_ids]
    if at:
        where = to_device(at, logits.device)
        logits[where[:, 0], where[:, 1]] = -torch.inf


def _draw(
    logits: torch.Tensor, top: torch.Tensor, rows: Sequence[Row], candidates: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sampled tokens of ``[rows, vocab]`` float32 logits with their maxima ``[rows]``; also 1 for
    each row whose filters may keep more than ``candidates`` tokens, for it is not decided."""
    device = logits.device
    params = [row.sampling for row in rows]
    # A number that float32 has; so small a one is greedy anyway.
    temperature = to_device([max(p.temperature, 1e-30) for p in params], device)
    # Less the maximum first: nothing overflows however small the temperature, and sums start at 1.
    scores = (logits - top[:, None]) / temperature[:, None]
    steps = [len(r.token_ids) for r in rows]
    numbers = uniforms([p.seed for p in params], steps).tolist()
    uniform = to_device(numbers, device, torch.float64)
    filtered = [i for i, p in enumerate(params) if p.top_k or p.top_p < 1 or p.min_p > 0]
    if len(filtered) == len(rows):
        return _draw_among(scores, uniform, params, candidates)
    tokens = _invert(scores, uniform)
    undecided = torch.zeros_like(tokens)
    if filtered:
        some = to_device(filtered, device)
        tokens[some], undecided[some] = _draw_among(
            scores[some], uniform[some], [params[i] for i in filtered], candidates
        )
    return tokens, undecided


def _invert(scores: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Where the cumulative distribution of softmax(scores) first passes each row's number."""
    cumulative = scores.exp().cumsum(dim=-1, dtype=torch.float64)
    target = uniform[:, None] * cumulative[:, -1:]
    place = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return place.clamp_(max=scores.shape[-1] - 1)


def _draw_among(
    scores: torch.Tensor, uniform: torch.Tensor, params: Sequence[Sampling], candidates: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from what the filters keep of the likeliest ``candidates`` tokens, or of as many as the
    rows' own top_k ask for; also 1 for each row of which they may keep more.

    A row's cut is a score, so tokens of equal score are kept or dropped together.
    """
    device = scores.device
    vocab_size = scores.shape[-1]
    count = min(vocab_size, max(candidates, *(p.top_k + 1 for p in params)))
    top_k = to_device([min(p.top_k, vocab_size) or vocab_size for p in params], device)
    top_p = to_device([p.top_p for p in params], device, torch.float64)
    min_p = to_device([p.min_p for p in params], device)
    best, token_ids = scores.topk(count, dim=-1)
    weight = best.exp().double()
    within_k = torch.arange(count, device=device) < top_k[:, None]
    total = scores.exp().sum(dim=-1, dtype=torch.float64)
    mass = torch.where(top_k < vocab_size, (weight * within_k).sum(-1), total)
    above = weight.cumsum(-1) - weight
    kept = within_k & (above < (top_p * mass)[:, None]) & (best >= min_p.log()[:, None])
    kept[:, 0] = True
    cut = torch.where(kept, best, torch.inf).amin(dim=-1, keepdim=True)
    # Equals of the last one kept may lie beyond what was looked at.
    undecided = (best[:, -1] >= cut[:, 0]).long() * (count < vocab_size)
    # In vocabulary order, so that neither the sort nor ``count`` has a say in the draw.
    token_ids, order = token_ids.sort(dim=-1)
    best = best.gather(1, order)
    place = _invert(best.masked_fill(best < cut, -torch.inf), uniform)
    return token_ids.gather(1, place[:, None])[:, 0], undecided
