"""Keys and values of the running rows, in buckets of like length.

A bucket is one tensor for each layer, ``[slots, kv_heads, length, head_dim]``, with its rows kept
compact in slots 0 to n-1. A row begins in the bucket that just holds it and moves to the next as it
grows. So a short row pays, in memory and in attention, for its own length class only, and a decode
step reads each bucket through views.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from millpond.models.memory_plan import BUCKETS
from worker.engines.scheduling.row import Row

# Lengths of the buckets, in tokens; doubling from there would waste up to half of a row's place.
_SHORTEST_BUCKET_TOKENS = 128
_FIRST_SLOTS = 4


def bucket_length(num_tokens: int) -> int:
    """Length of the shortest bucket that holds a row of that many tokens: 128, 192, 256, 384, ..."""
    length = _SHORTEST_BUCKET_TOKENS
    while length < num_tokens:
        if length + length // 2 >= num_tokens:
            return length + length // 2
        length *= 2
    return length


@dataclass(frozen=True, slots=True)
class KVLayout:
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


class Bucket:
    """Owns the tensors of one length class and which row is in which slot.

    ``version`` grows whenever tensors are replaced by others.
    """

    def __init__(self, length: int, layout: KVLayout) -> None:
        self.length = length
        self.rows: list[Row] = []
        self.version = 0
        self._layout = layout
        self._num_slots = 0
        self._keys = [self._empty(0) for _ in range(layout.num_layers)]
        self._values = [self._empty(0) for _ in range(layout.num_layers)]

    @property
    def num_slots(self) -> int:
        return self._num_slots

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, each ``[slots, kv_heads, length, head_dim]``."""
        return self._keys[index], self._values[index]

    def resize(self, num_slots: int) -> None:
        """Have exactly so many slots, no fewer than there are rows.

        May run out of memory; then the bucket serves on as it was.
        """
        kept = len(self.rows)
        assert num_slots >= kept
        # Whatever happens below, at least so many slots are there.
        self._num_slots = min(num_slots, self._num_slots)
        for tensors in (self._keys, self._values):
            for index, old in enumerate(tensors):
                if old.shape[0] == num_slots:  # an earlier attempt got this far
                    continue
                new = self._empty(num_slots)
                new[:kept] = old[:kept]
                tensors[index] = new
                self.version += 1
        self._num_slots = num_slots

    def scrub(self, slot: int) -> None:
        """Forget what is in a slot. A masked NaN is still a NaN, and would reach the next row."""
        for tensors in (self._keys, self._values):
            for tensor in tensors:
                tensor[slot].zero_()

    def copy_row(self, slot: int, target: "Bucket", target_slot: int, num_tokens: int) -> None:
        for tensors, targets in ((self._keys, target._keys), (self._values, target._values)):
            for source, destination in zip(tensors, targets, strict=True):
                destination[target_slot, :, :num_tokens] = source[slot, :, :num_tokens]

    def _empty(self, num_slots: int) -> torch.Tensor:
        # Zeros: a masked place still takes part in the product, where 0 * NaN would be NaN.
        layout = self._layout
        return torch.zeros(
            (num_slots, layout.num_kv_heads, self.length, layout.head_dim),
            dtype=layout.dtype,
            device=layout.device,
        )


class KVCache:
    """Owns the buckets and where each row lies.

    ``kv_tokens`` is what all rows together may reserve; as long as they keep to it, the buckets
    hold at most what `BUCKETS` says.
    """

    def __init__(self, layout: KVLayout, *, kv_tokens: int) -> None:
        self.layout = layout
        self._limit_tokens = BUCKETS.tokens(0, kv_tokens)
        self._buckets: dict[int, Bucket] = {}
        self._places: dict[str, tuple[Bucket, int]] = {}

    @property
    def num_rows(self) -> int:
        return len(self._places)

    @property
    def allocated_tokens(self) -> int:
        return sum(s.num_slots * s.length for s in self._buckets.values())

    def buckets(self) -> list[Bucket]:
        """The buckets with rows on them, shortest first. The batch is their rows in this order."""
        return [self._buckets[n] for n in sorted(self._buckets) if self._buckets[n].rows]

    def place_of(self, row: Row) -> tuple[Bucket, int]:
        """The row's bucket and slot."""
        return self._places[row.id]

    def allocate(self, rows: list[Row]) -> None:
        """Give each row a slot for its tokens; all of them or, out of memory, none."""
        wanted: dict[int, list[Row]] = {}
        for row in rows:
            wanted.setdefault(bucket_length(row.num_tokens), []).append(row)
        try:
            for length, group in wanted.items():
                bucket = self._bucket(length)
                self._reserve(bucket, len(group))
                for row in group:
                    self._put(row, bucket)
        except (RuntimeError, MemoryError):
            for row in rows:
                self.free(row)
            raise

    def share(self, rows: Iterable[Row]) -> set[str]:
        """Buckets share nothing."""
        return set()

    def given_tokens(self, row: Row) -> int:
        """Buckets share nothing."""
        return 0

    def offer(self, rows: Iterable[Row]) -> None:
        """Buckets share nothing."""

    def copy(self, source: Row, row: Row) -> None:
        """Fill the row's slot from that of another, which has the same tokens and has read them."""
        bucket, slot = self._places[source.id]
        target, target_slot = self._places[row.id]
        bucket.copy_row(slot, target, target_slot, source.num_tokens)

    def make_room(self) -> None:
        """Move each row whose next token has no place on its bucket to the next one.

        Out of memory, the rows moved so far have moved and nothing is lost; it may be called again.
        """
        for bucket in self.buckets():
            for row in [r for r in bucket.rows if r.num_tokens > bucket.length]:
                target = self._bucket(bucket_length(row.num_tokens))
                self._reserve(target, 1)
                _, slot = self._places[row.id]
                bucket.copy_row(slot, target, len(target.rows), bucket.length)
                self.free(row)
                self._put(row, target)

    def free(self, row: Row, *, scrub: bool = False) -> None:
        """Give the row's slot back; the bucket's last row takes it. Unknown rows are ignored.

        ``scrub`` when what the row leaves behind may not be finite.
        """
        place = self._places.pop(row.id, None)
        if place is None:
            return
        bucket, slot = place
        if scrub:
            bucket.scrub(slot)
        last = bucket.rows.pop()
        if last is not row:
            bucket.copy_row(len(bucket.rows), bucket, slot, min(last.num_tokens, bucket.length))
            bucket.rows[slot] = last
            self._places[last.id] = (bucket, slot)

    def trim(self) -> None:
        """Free all unused memory."""
        for bucket in self._buckets.values():
            bucket.resize(len(bucket.rows))

    def clear(self) -> None:
        self._buckets.clear()
        self._places.clear()

    def _reserve(self, bucket: Bucket, num_rows: int) -> None:
        """Make slots for so many more rows: half as many again while the limit allows, so that
        growth is rarely paid for, else only those, once no other bucket has any to spare."""
        needed = len(bucket.rows) + num_rows
        if needed <= bucket.num_slots:
            return
        generous = max(needed, _FIRST_SLOTS, bucket.num_slots + bucket.num_slots // 2)
        growth_tokens = (generous - bucket.num_slots) * bucket.length
        if self.allocated_tokens + growth_tokens > self._limit_tokens:
            self.trim()
            generous = needed
        bucket.resize(generous)

    def _put(self, row: Row, bucket: Bucket) -> None:
        self._places[row.id] = (bucket, len(bucket.rows))
        bucket.rows.append(row)

    def _bucket(self, length: int) -> Bucket:
        if length not in self._buckets:
            self._buckets[length] = Bucket(length, self.layout)
        return self._buckets[length]
