"""Attention over packed prompts and over buckets, behind transformers' attention interface.

A forward pass carries a plan: `PrefillPlan` or `DecodePlan`. The model's own layers hand their
rotated keys and values to `PlanCache.update`, which writes them where the plan says, and their
queries to `attend`, which reads what the plan says. No mask of transformers' making is involved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from millpond.errors import UnsupportedModelError
from worker.engines.scheduling.row import Row
from worker.engines.torch.kv_cache import Bucket, KVCache

ATTENTION_NAME = "millpond"
# What some models ask of attention and this one does not do.
_REFUSED_ARGUMENTS = ("softcap", "s_aux", "sinks", "position_bias", "head_mask")


class Plan(Protocol):
    """Where one forward pass writes its keys and values, and what its queries may see.

    ``windows`` holds each layer's sliding window, None for full attention.
    """

    windows: Sequence[int | None]

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store ``[batch, kv_heads, queries, head_dim]``."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        """From ``[batch, heads, queries, head_dim]`` to ``[batch, queries, heads, head_dim]``."""


class PrefillPlan:
    """Prompts end to end in one row of tokens: no padding, each attends to itself alone.

    A piece is a row with the first token of it to read and the one past the last; what came before
    is in the row's slot. ``ends`` is where each piece ends in the row of tokens.
    """

    def __init__(
        self,
        pieces: Sequence[tuple[Row, int, int]],
        cache: KVCache,
        windows: Sequence[int | None],
    ) -> None:
        self.windows = windows
        self._pieces = [_Piece(start, stop, *cache.place_of(row)) for row, start, stop in pieces]
        self.ends = list(accumulate(stop - start for _, start, stop in pieces))
        self._masks: dict[tuple[int, int, int], torch.Tensor] = {}

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        for piece, end in zip(self._pieces, self.ends, strict=True):
            keys, values = piece.bucket.layer(layer)
            here = slice(end - piece.length, end)
            keys[piece.slot, :, piece.start : piece.stop] = key[0, :, here]
            values[piece.slot, :, piece.start : piece.stop] = value[0, :, here]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        _, num_heads, num_tokens, head_dim = query.shape
        out = query.new_empty((1, num_tokens, num_heads, head_dim))
        window = self.windows[layer]
        for piece, end in zip(self._pieces, self.ends, strict=True):
            here = slice(end - piece.length, end)
            # Where the first query's sight begins; all keys before are out of the window.
            first = 0 if window is None else max(0, piece.start - window + 1)
            keys, values = key[:, :, here], value[:, :, here]
            if piece.start > 0:
                # With a mask and shared heads torch would hold all scores at once; repeated heads
                # take far less.
                group = num_heads // key.shape[1]
                keys, values = (x.repeat_interleave(group, 1) for x in piece.stored(layer, first))
            mask = self._mask(piece, first, window, query.device)
            result = scaled_dot_product_attention(
                query[:, :, here],
                keys,
                values,
                attn_mask=mask,
                is_causal=mask is None and piece.length > 1,
                scale=scale,
                enable_gqa=keys.shape[1] != num_heads,
            )
            out[:, here] = result.transpose(1, 2)
        return out

    def _mask(
        self, piece: "_Piece", first: int, window: int | None, device: torch.device
    ) -> torch.Tensor | None:
        """``[queries, keys]``; None where each query sees all keys up to its own."""
        if piece.start == 0 and (window is None or window >= piece.length):
            return None
        known = (piece.start, piece.stop, first)
        mask = self._masks.get(known)
        if mask is None:
            # By comparisons: a difference would take eight bytes for each pair.
            query = torch.arange(piece.start, piece.stop, device=device)[:, None]
            place = torch.arange(first, piece.stop, device=device)
            mask = place <= query
            if window is not None:
                mask &= place > query - window
            self._masks[known] = mask
        return mask


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    stop: int
    bucket: Bucket
    slot: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    def stored(self, layer: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The row's keys and values from position ``first`` on, ``[1, kv_heads, keys, head_dim]``."""
        at = slice(self.slot, self.slot + 1)
        keys, values = self.bucket.layer(layer)
        return keys[at, :, first : self.stop], values[at, :, first : self.stop]


class DecodePlan:
    """One new token for each row of the cache, bucket by bucket."""

    def __init__(self, spans: "list[_Span]", windows: Sequence[int | None]) -> None:
        self.windows = windows
        self._spans = spans

    @classmethod
    def of_rows(
        cls, buckets: Sequence[Bucket], positions: torch.Tensor, windows: Sequence[int | None]
    ) -> "DecodePlan":
        """Of the rows on these buckets, in their order. ``positions`` ``[rows]`` are the places of
        their next tokens."""
        spans, start = [], 0
        for bucket in buckets:
            lengths = [row.read_tokens + 1 for row in bucket.rows]
            length, stop = max(lengths), start + len(lengths)
            even = min(lengths) == length
            spans.append(_Span(bucket, start, positions[start:stop], length, even=even))
            start = stop
        return cls(spans, windows)

    @classmethod
    def of_whole_buckets(
        cls, buckets: Sequence[Bucket], positions: torch.Tensor, windows: Sequence[int | None]
    ) -> "DecodePlan":
        """Of all slots, empty ones too, each over the bucket's whole length: nothing here depends on
        which rows there are. ``positions`` has one for each slot."""
        spans, start = [], 0
        for bucket in buckets:
            stop = start + bucket.num_slots
            spans.append(_Span(bucket, start, positions[start:stop], bucket.length, even=False))
            start = stop
        return cls(spans, windows)

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        for span in self._spans:
            keys, values = span.bucket.layer(layer)
            keys[span.slots, :, span.positions] = key[span.start : span.stop, :, 0]
            values[span.slots, :, span.positions] = value[span.start : span.stop, :, 0]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        num_rows, num_heads, _, head_dim = query.shape
        num_kv_heads = key.shape[1]
        # The heads that share keys stand in the place of query tokens, so keys are not repeated.
        folded = query.reshape(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
        results = []
        for span in self._spans:
            keys, values = span.bucket.layer(layer)
            size = span.stop - span.start
            results.append(
                scaled_dot_product_attention(
                    folded[span.start : span.stop],
                    keys[:size, :, : span.length],
                    values[:size, :, : span.length],
                    attn_mask=span.mask(self.windows[layer]),
                    scale=scale,
                )
            )
        out = results[0] if len(results) == 1 else torch.cat(results)
        return out.reshape(num_rows, 1, num_heads, head_dim)


class _Span:
    """One bucket's rows within the batch: rows ``start`` to ``stop``, at most ``length`` tokens each;
    ``even`` if all of them have that many."""

    def __init__(
        self, bucket: Bucket, start: int, positions: torch.Tensor, length: int, *, even: bool
    ) -> None:
        self.bucket = bucket
        self.start = start
        self.stop = start + len(positions)
        self.length = length
        self.slots = torch.arange(len(positions), device=positions.device)
        self.positions = positions
        self._even = even
        self._masks: dict[int | None, torch.Tensor | None] = {}

    def mask(self, window: int | None) -> torch.Tensor | None:
        """What each row may see, ``[rows, 1, 1, length]``; None where all see everything."""
        if window is not None and window >= self.length:
            window = None
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> torch.Tensor | None:
        if window is None and self._even:
            return None
        place = torch.arange(self.length, device=self.positions.device)
        position = self.positions[:, None]
        seen = place <= position
        if window is not None:
            seen &= place > position - window
        return seen[:, None, None, :]


class PlanCache(Cache):  # type: ignore[misc]
    """What the model takes for its cache during one forward pass."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(layers=[])
        self._plan = plan

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write at each row's own position; the states go on to `attend` as they are."""
        self._plan.write(layer_idx, key_states, value_states)
        return key_states, value_states


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    plan: Plan,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that the model's attention layers call.

    Raises UnsupportedModelError when a layer asks for what is not done here.
    """
    layer: Any = module.layer_idx
    asked = [name for name in _REFUSED_ARGUMENTS if kwargs.get(name) is not None]
    if attention_mask is not None:
        asked.append("attention_mask")
    if sliding_window != plan.windows[layer]:
        asked.append(f"sliding_window={sliding_window}")
    if asked:
        raise UnsupportedModelError(
            f"attention layer {layer} of {type(module).__name__} wants {', '.join(asked)}, "
            "which this engine does not do"
        )
    return plan.attend(layer, query, key, value, scaling), None


def register() -> None:
    """Make `attend` known to transformers under `ATTENTION_NAME`; harmless if repeated."""
    AttentionInterface.register(ATTENTION_NAME, attend)
