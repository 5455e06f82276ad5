"""Attention by torch's `scaled_dot_product_attention`, for the CPU and for cards without the flash kernel.

The pages that it reads are first copied together, one layer and some rows at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch.nn.functional import scaled_dot_product_attention

from worker.engines.torch.batch import Batch
from worker.engines.torch.kv_pool import KVPool


def page_class(num_pages: int) -> int:
    """The most pages of the rows that are read together with one that has so many: 1, 2, 3, 4, 6, 8, 12, ...
    So no row reads more than half as much again as it has."""
    power = 1
    while power * 2 <= num_pages:
        power *= 2
    return next(n for n in (power, power + power // 2, 2 * power) if n >= num_pages)


class GatheredReading:
    """Rows with one token to read go together by the class of their pages if they stand side by side; longer
    pieces one by one."""

    def __init__(self, batch: Batch, pool: KVPool, windows: Sequence[int | None]) -> None:
        assert batch.spans
        self._pool = pool
        self._windows = windows
        self._groups: list[_Rows | _Piece] = []
        page_tokens = pool.layout.page_tokens
        row = token = 0
        for pages, run in groupby(batch.spans, lambda span: _together(span, page_tokens)):
            spans = list(run)
            if pages is None:
                for start, stop in spans:
                    self._groups.append(_Piece(batch.table[row], token, start, stop))
                    row, token = row + 1, token + stop - start
            else:
                self._groups.append(_Rows.of(batch, pool, row, token, spans))
                row, token = row + len(spans), token + len(spans)

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        window, pages = self._windows[layer], self._pool.layer(layer)
        results = [group.attend(query, key, value, pages, window, scale) for group in self._groups]
        return results[0] if len(results) == 1 else torch.cat(results)


def _together(span: tuple[int, int], page_tokens: int) -> int | None:
    start, stop = span
    return page_class(-(-stop // page_tokens)) if stop - start == 1 else None


@dataclass(slots=True)
class _Rows:
    """Rows that read one token each: those of ``tokens``, from ``length`` places in ``pages``."""

    tokens: slice
    pages: torch.Tensor
    positions: torch.Tensor
    length: int
    even: bool
    dtype: torch.dtype
    _masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        batch: Batch,
        pool: KVPool,
        row: int,
        token: int,
        spans: Sequence[tuple[int, int]],
    ) -> "_Rows":
        longest = max(stop for _, stop in spans)
        table = batch.table[row : row + len(spans), : -(-longest // pool.layout.page_tokens)]
        tokens = slice(token, token + len(spans))
        return cls(
            tokens,
            table.flatten(),
            batch.positions[tokens],
            longest,
            min(stop for _, stop in spans) == longest,
            pool.layout.dtype,
        )

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        pages: tuple[torch.Tensor, torch.Tensor],
        window: int | None,
        scale: float | None,
    ) -> torch.Tensor:
        query = query[self.tokens]
        num_rows, num_heads, head_dim = query.shape
        num_kv_heads = key.shape[1]
        keys, values = (self._gather(tensor, num_rows) for tensor in pages)
        # The heads that share keys stand in the place of query tokens, so keys are not repeated.
        result = scaled_dot_product_attention(
            query.view(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim),
            keys,
            values,
            attn_mask=self._mask(window),
            scale=scale,
        )
        return result.reshape(num_rows, num_heads, head_dim)

    def _gather(self, pages: torch.Tensor, num_rows: int) -> torch.Tensor:
        """``[rows, kv_heads, length, head_dim]``."""
        found = pages.index_select(0, self.pages)
        return found.view(num_rows, -1, *found.shape[2:])[:, : self.length].transpose(1, 2)

    def _mask(self, window: int | None) -> torch.Tensor | None:
        """What is added to each score, ``[rows, 1, 1, length]``; None where all see everything."""
        if window is not None and window >= self.length:
            window = None
        if window not in self._masks:
            self._masks[window] = self._make_mask(window)
        return self._masks[window]

    def _make_mask(self, window: int | None) -> torch.Tensor | None:
        if window is None and self.even:
            return None
        place = torch.arange(self.length, device=self.positions.device)
        position = self.positions[:, None]
        unseen = place > position
        if window is not None:
            unseen |= place <= position - window
        mask = torch.zeros(unseen.shape, dtype=self.dtype, device=place.device)
        return mask.masked_fill_(unseen, -torch.inf)[:, None, None, :]


@dataclass(slots=True)
class _Piece:
    """One row's tokens from ``start`` to ``stop``, which begin at ``token`` of the batch."""

    table: torch.Tensor
    token: int
    start: int
    stop: int
    _masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        pages: tuple[torch.Tensor, torch.Tensor],
        window: int | None,
        scale: float | None,
    ) -> torch.Tensor:
        here = slice(self.token, self.token + self.stop - self.start)
        query = query[here]
        # Where the first query's sight begins; all keys before are out of the window.
        first = 0 if window is None else max(0, self.start - window + 1)
        if self.start == 0:
            keys, values = key[here], value[here]
        else:
            # With a mask and shared heads torch would hold all scores at once; repeated heads take far
            # less.
            group = query.shape[1] // key.shape[1]
            keys, values = (self._stored(t, first).repeat_interleave(group, 1) for t in pages)
        mask = self._mask(first, window, query.device)
        query, keys, values = (states.transpose(0, 1)[None] for states in (query, keys, values))
        result = scaled_dot_product_attention(
            query,
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None and self.stop - self.start > 1,
            scale=scale,
            enable_gqa=keys.shape[1] != query.shape[1],
        )
        return result[0].transpose(0, 1)

    def _stored(self, pages: torch.Tensor, first: int) -> torch.Tensor:
        """The row's keys or values from position ``first`` on, ``[keys, kv_heads, head_dim]``."""
        page_tokens = pages.shape[1]
        skipped = first // page_tokens
        found = pages.index_select(0, self.table[skipped : -(-self.stop // page_tokens)])
        begin = skipped * page_tokens
        return found.flatten(0, 1)[first - begin : self.stop - begin]

    def _mask(self, first: int, window: int | None, device: torch.device) -> torch.Tensor | None:
        """``[queries, keys]``; None where each query sees all keys up to its own."""
        if self.start == 0 and (window is None or window >= self.stop):
            return None
        if window not in self._masks:
            # By comparisons: a difference would take eight bytes for each pair.
            query = torch.arange(self.start, self.stop, device=device)[:, None]
            place = torch.arange(first, self.stop, device=device)
            mask = place <= query
            if window is not None:
                mask &= place > query - window
            self._masks[window] = mask
        return self._masks[window]
