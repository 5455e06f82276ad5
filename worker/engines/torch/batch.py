"""What one forward pass reads: any rows, each with any number of its next tokens, end to end.

A prompt's chunk and a decode step are the same thing here; nothing is padded. All numbers of a batch
lie in one tensor, so that one copy takes them to the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from worker.engines.paging.pages import PagedCache
from worker.engines.scheduling.row import Row
from worker.engines.torch.kv_pool import KVPool

# What stands for an adapter where a row has none.
NO_ADAPTER = -1
# A row, the place of its first token to read and of the one past the last.
Piece = tuple[Row, int, int]


@dataclass(frozen=True, slots=True)
class Shape:
    """``pages`` is the width of the page table; ``most_queries`` the most tokens of one row, and
    ``most_keys`` how many its last token may see."""

    tokens: int
    rows: int
    pages: int
    most_queries: int
    most_keys: int

    @property
    def _parts(self) -> list[int]:
        return [*[self.tokens] * 4, *[self.rows + 1] * 2, self.rows, self.rows * self.pages]

    @property
    def size(self) -> int:
        return sum(self._parts)


class Batch:
    """``numbers`` ``[shape.size]`` int32, as `pack` makes them; all other fields are views of them.

    ``spans`` are the pieces' first places and the ones past their last, where the host knows them; then it
    also knows whether any is ``adapted``.
    """

    def __init__(
        self,
        shape: Shape,
        numbers: torch.Tensor,
        spans: Sequence[tuple[int, int]] = (),
        *,
        adapted: bool = True,
    ) -> None:
        self.shape = shape
        self.spans = spans
        self.adapted = adapted
        parts = torch.split(numbers, shape._parts)
        self.token_ids, self.positions, places, self.adapters = parts[:4]
        # Where the pieces begin among the tokens, and their rows' keys in one row of all keys.
        self.starts, self.key_starts, self.lengths, table = parts[4:]
        self.places = places.long()
        self.table = table.view(shape.rows, shape.pages)


def decode_shape(rows: int, pages: int, page_tokens: int) -> Shape:
    """One token for each of so many rows, whatever their lengths."""
    return Shape(rows, rows, pages, 1, pages * page_tokens)


def shape_of(pieces: Sequence[Piece], page_tokens: int) -> Shape:
    counts = [stop - start for _, start, stop in pieces]
    most_keys = max(stop for _, _, stop in pieces)
    pages = -(-most_keys // page_tokens)
    return Shape(sum(counts), len(pieces), pages, max(counts), most_keys)


def pack(
    shape: Shape,
    pieces: Sequence[Piece],
    token_ids: Sequence[int],
    adapters: Sequence[int],
    cache: PagedCache[KVPool],
) -> npt.NDArray[np.int32]:
    """The numbers of these pieces, filled up to the shape with rows that read token 0 of the spare page.

    ``adapters`` are the pieces' own, as `RowAdapters` numbers them.
    """
    fillers = shape.rows - len(pieces)
    tables = np.full((shape.rows, shape.pages), cache.pool.spare, dtype=np.int32)
    for table, (row, _, _) in zip(tables, pieces, strict=False):
        known = cache.table_of(row)
        used = min(known.used, shape.pages)
        table[:used] = known.numbers[:used]
    first = np.array([*(start for _, start, _ in pieces), *[0] * fillers])
    stop = np.array([*(stop for _, _, stop in pieces), *[1] * fillers])
    counts = stop - first
    row_of = np.repeat(np.arange(shape.rows), counts)
    starts = np.concatenate(([0], np.cumsum(counts)))
    positions = np.arange(shape.tokens) + (first - starts[:-1])[row_of]
    pages = tables[row_of, positions // cache.page_tokens]
    places = pages * cache.page_tokens + positions % cache.page_tokens
    of_tokens = np.array([*adapters, *[NO_ADAPTER] * fillers])[row_of]
    key_starts = np.concatenate(([0], np.cumsum(stop)))
    ids = [*token_ids, *[0] * fillers]
    parts = (ids, positions, places, of_tokens, starts, key_starts, stop, tables.ravel())
    return np.concatenate(parts, dtype=np.int32, casting="same_kind")
