"""The next token of each row: greedy and sampled rows mixed, each row by its own parameters.

The algorithm is defined here, in torch; `native/csrc/sampling.h` implements it in C. Both choose the
same token from the same float32 logits and seed, on every device and in any company:

1. Biases and penalties are applied (see `penalties`). The logits of tokens that the row's constraint
   forbids become -inf, and below min_tokens those of its end tokens.
2. A greedy row takes the first of its greatest logits. In a sampled row each token gets a probability
   mass of 2^44 * exp((logit - greatest logit) / temperature), computed in float32 exactly as in
   `_masses` and rounded down to an integer. So sums of masses do not depend on their order.
3. Filters, in the order of transformers' logits processors. top_k keeps the tokens that have fewer
   than k tokens above them. Of those, top_p keeps the tokens above which there is less than top_p of
   their total. min_p keeps what has at least min_p times the greatest mass. Tokens of equal mass are
   kept or dropped together.
4. (seed, step) gives one uniform number. Times the total of what was kept, rounded down, it is the
   target; the first token in vocabulary order at which the running total exceeds it is chosen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from millpond.models.memory_plan import DRAW_ROWS
from worker.engines.base import Sampling, TokenLogprobs
from worker.engines.sampling.logprobs import RawLogprobs
from worker.engines.sampling.masking import forbid
from worker.engines.sampling.penalties import adjust
from worker.engines.sampling.transfer import to_device
from worker.engines.scheduling.row import Row

# How many of the likeliest tokens are looked at first; most filters end well within.
_FIRST_CANDIDATES = 256
_MASS_BITS = 44
# Anything smaller rounds to no mass; the bound keeps the exponents within float32.
_LEAST_EXPONENT = -64.0
# 2^f for f from -0.5 to 0.5 is 1 + f * (c1 + f * (c2 + ...)), to 2e-7; here from c5 to c1.
_EXP2 = (
    0.001326472731307149,
    0.009671512991189957,
    0.05550733581185341,
    0.24022242426872253,
    0.6931470036506653,
)


@dataclass(frozen=True, slots=True)
class Output:
    """What a forward pass says of each row's next token.

    ``logits`` ``[rows, vocab]``, or ``best``, the likeliest tokens (None where logits are not finite), or
    both. With both, logits may be undefined for rows that do not need them, see `needs_logits`. The
    next pass may overwrite them.
    """

    logits: torch.Tensor | None
    best: list[int | None] | None = None

    @classmethod
    def joined(cls, outputs: Sequence["Output"]) -> "Output":
        """Those of several passes as one; all have logits, or all have the likeliest tokens, or both."""
        logits = [o.logits for o in outputs if o.logits is not None]
        best = [token for o in outputs for token in o.best or ()]
        return cls(torch.cat(logits) if logits else None, best or None)

    def copy(self) -> "Output":
        return Output(None if self.logits is None else self.logits.clone(), self.best)

    def of(self, places: Sequence[int]) -> "Output":
        """What it says of the rows at these places, which may repeat."""
        return Output(
            None if self.logits is None else self.logits[list(places)],
            None if self.best is None else [self.best[place] for place in places],
        )


class Sampler(Protocol):
    def __call__(
        self, logits: torch.Tensor, places: Sequence[int], rows: Sequence[Row]
    ) -> list[int | None]:
        """The next token of each of these rows, whose logits are those at ``places``.

        None where they are not finite. The logits may be overwritten.
        """


@dataclass(frozen=True, slots=True)
class NextTokens:
    """One entry for each row: its token, None where its logits are not finite, and what the model
    thought of it, None where nobody asked."""

    tokens: list[int | None]
    logprobs: list[TokenLogprobs | None]


def needs_logits(row: Row) -> bool:
    """Whether the likeliest token alone is too little to choose the row's next one."""
    return bool(
        row.sampling.temperature > 0
        or row.adjusts_logits
        or row.suppressed_token_ids
        or row.sampling.logprobs is not None
        or row.matcher is not None
    )


def next_tokens(output: Output, rows: Sequence[Row], sampler: Sampler) -> NextTokens:
    tokens: list[int | None] = [None] * len(rows) if output.best is None else list(output.best)
    places = [i for i, row in enumerate(rows) if output.best is None or needs_logits(row)]
    raw: RawLogprobs | None = None
    if places:
        assert output.logits is not None
        raw = RawLogprobs(output.logits, rows)
        drawn = sampler(output.logits, places, [rows[i] for i in places])
        for place, token in zip(places, drawn, strict=True):
            tokens[place] = token
    tokens = [_forced(row, token) for row, token in zip(rows, tokens, strict=True)]
    return NextTokens(tokens, [None] * len(rows) if raw is None else raw.of(tokens))


def _forced(row: Row, token: int | None) -> int | None:
    """What must come, unless the logits show that something is wrong."""
    return token if token is None or row.forced_token_id is None else row.forced_token_id


def torch_sampler(
    logits: torch.Tensor, places: Sequence[int], rows: Sequence[Row]
) -> list[int | None]:
    """The `Sampler` for any device."""
    if len(places) < len(logits):
        logits = logits[to_device(places, logits.device)]
    return sample(logits, rows)


def sample(logits: torch.Tensor, rows: Sequence[Row]) -> list[int | None]:
    """The next token of each row from ``[rows, vocab]`` logits.

    None for a row whose logits are not finite. Reads the device once, and once more for each time that
    some row's filters keep more tokens than were looked at: those rows are drawn again from 16 times
    as many, for a whole vocabulary takes a hundred times as long to sort.
    """
    logits = adjust(logits, rows)
    forbid(logits, rows)
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


def exponent_scale(sampling: Sampling) -> float:
    """What turns differences of logits into exponents of two: log2(e) / temperature, finite in float32
    however low the temperature."""
    return math.log2(math.e) / max(sampling.temperature, 1e-30)


def _splitmix64(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _suppress_ends(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    """Below min_tokens, mask the row's end tokens, in place."""
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
    scale = to_device([exponent_scale(p) for p in params], device)
    masses = _masses(logits, top, scale)
    numbers = uniforms([p.seed for p in params], [len(row.token_ids) for row in rows])
    uniform = to_device(numbers.tolist(), device, torch.float64)
    filtered = [i for i, p in enumerate(params) if p.top_k or p.top_p < 1 or p.min_p > 0]
    if len(filtered) == len(rows):
        return _draw_among(masses, uniform, params, candidates)
    tokens = _invert(masses, uniform)
    undecided = torch.zeros_like(tokens)
    if filtered:
        some = to_device(filtered, device)
        tokens[some], undecided[some] = _draw_among(
            masses[some], uniform[some], [params[i] for i in filtered], candidates
        )
    return tokens, undecided


def _masses(logits: torch.Tensor, top: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Integers, as float32; overwrites the logits. Every operation is a separate IEEE 754 one, with no
    fused multiply-add, so that all devices agree on each bit."""
    x = logits.sub_(top[:, None]).mul_(scale[:, None]).clamp_(min=_LEAST_EXPONENT)
    whole = x.round()
    f = x.sub_(whole)
    y = torch.full_like(f, _EXP2[0])
    for coefficient in (*_EXP2[1:], 1.0):
        y.mul_(f).add_(coefficient)
    del x, f
    # A power of two is its exponent, shifted into place.
    power = whole.nan_to_num_().int().add_(127 + _MASS_BITS).bitwise_left_shift_(23)
    return y.mul_(power.view(torch.float32)).trunc_()


def _invert(masses: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The first place at which the running total of masses exceeds the row's target."""
    cumulative = masses.cumsum(dim=-1, dtype=torch.int64)
    total = cumulative[:, -1:]
    target = torch.minimum((uniform[:, None] * total).long(), total - 1)
    place = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return place.clamp_(max=masses.shape[-1] - 1)


def _draw_among(
    masses: torch.Tensor, uniform: torch.Tensor, params: Sequence[Sampling], candidates: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw from what the filters keep of the likeliest ``candidates`` tokens, or of as many as the
    rows' own top_k ask for; also 1 for each row of which they may keep more."""
    device = masses.device
    vocab_size = masses.shape[-1]
    count = min(vocab_size, max(candidates, *(p.top_k + 1 for p in params)))
    top_k = to_device([min(p.top_k, vocab_size) or vocab_size for p in params], device)
    top_p = to_device([p.top_p for p in params], device, torch.float64)
    min_p = to_device([p.min_p for p in params], device)
    best, token_ids = masses.topk(count, dim=-1)
    kth = best.gather(1, top_k.clamp(max=count)[:, None] - 1)
    kth = kth.masked_fill_((top_k == vocab_size)[:, None], 0.0)
    above = best.long().cumsum(dim=-1)
    total = torch.where(
        kth[:, 0] > 0,
        above.masked_fill(best < kth, 0).amax(dim=-1),
        masses.sum(dim=-1, dtype=torch.int64),
    )
    within = torch.where(top_p < 1, (top_p * total).ceil().long(), total)
    above -= best.long()
    kept = (best >= kth) & (above < within[:, None]) & (best >= (min_p * 2.0**_MASS_BITS)[:, None])
    kept[:, 0] = True
    cut = torch.where(kept, best, torch.inf).amin(dim=-1)
    # Equals of the last one kept, or of the last of top_k, may lie beyond what was looked at.
    last, needed = best[:, -1], torch.where(kth[:, 0] > 0, kth[:, 0], cut)
    undecided = ((last >= needed) & (last > 0)).long() * (count < vocab_size)
    # In vocabulary order, so that neither the sort nor ``count`` has a say in the draw.
    token_ids, order = token_ids.sort(dim=-1)
    best = best.gather(1, order)
    place = _invert(best.masked_fill(best < cut[:, None], 0.0), uniform)
    return token_ids.gather(1, place[:, None])[:, 0], undecided
