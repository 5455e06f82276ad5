"""Calls the compiled forward pass: prefill of a group, a decode step of the batch."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worker.engines.native import structs
from worker.engines.native.byte_pool import BytePool
from worker.engines.native.library import Library
from worker.engines.native.logits import LogitsBuffer
from worker.engines.native.panels import PANEL
from worker.engines.native.weights import NativeModel
from worker.engines.paging.pages import PagedCache
from worker.engines.sampling.sampling import Output
from worker.engines.scheduling.prefill import Chunk
from worker.engines.scheduling.row import Row

# The kernels may read rows up to the next multiple, and make nothing of them.
SPARE_ROWS = 16


class NativeRunner:
    """A row's results depend on its own tokens alone, bit for bit: not on its company, nor on how
    its tokens are divided between prefill and decode, nor on the number of threads."""

    def __init__(self, model: NativeModel, library: Library, cache: PagedCache[BytePool]) -> None:
        self._model = model
        self._cache = cache
        self._forward = library.functions.millpond_forward
        self._library = library
        self._scratch: dict[str, npt.NDArray[Any]] = {}
        self._logits = LogitsBuffer(model.vocab_size)

    def read(self, chunk: Chunk, *, logits: bool = False) -> Output:
        scores, addresses = self._logits.places(chunk.ended_rows, every=logits)
        best = self._run(
            [row for row, _, _ in chunk.pieces],
            chunk.token_ids,
            [(start, stop - start) for _, start, stop in chunk.pieces],
            addresses,
            ended=chunk.ended,
        )
        return _output(best, scores)

    def decode(self, rows: Sequence[Row], *, logits: bool = False) -> tuple[list[Row], Output]:
        # Rows of one adapter beside each other are multiplied together.
        rows = sorted(rows, key=lambda row: row.adapter or "")
        return rows, self._step(rows, {}, logits=logits)

    def verify(self, rows: Sequence[Row], drafts: Mapping[str, Sequence[int]]) -> Output:
        for row in rows:
            self._cache.reach(row, row.num_tokens + len(drafts.get(row.id, ())))
        return self._step(rows, drafts, logits=False)

    def warm_up(self) -> None:
        """Nothing is prepared."""

    def trim(self) -> None:
        self._scratch.clear()
        self._logits.clear()

    def _step(
        self, rows: Sequence[Row], drafts: Mapping[str, Sequence[int]], *, logits: bool
    ) -> Output:
        """The output has a place for each token read: the newest of each row and those of its draft."""
        read = [[row.next_token_id, *drafts.get(row.id, ())] for row in rows]
        places = [row for row, token_ids in zip(rows, read, strict=True) for _ in token_ids]
        scores, addresses = self._logits.places(places, every=logits)
        best = self._run(
            rows,
            [token_id for token_ids in read for token_id in token_ids],
            [(row.read_tokens, len(token_ids)) for row, token_ids in zip(rows, read, strict=True)],
            addresses,
        )
        return _output(best, scores)

    def _run(
        self,
        rows: Sequence[Row],
        token_ids: Sequence[int],
        spans: Sequence[tuple[int, int]],
        logits: npt.NDArray[np.uint64],
        *,
        ended: Sequence[int] | None = None,
    ) -> list[int]:
        """One call; the likeliest token after each of the segments ``ended``, or after every token; -1 where
        logits are not finite. ``spans`` are first positions and counts; ``logits`` the addresses for the
        logits."""
        counts = np.array([count for _, count in spans], dtype=np.int32)
        starts = np.zeros(len(spans) + 1, dtype=np.int32)
        np.cumsum(counts, out=starts[1:])
        segment_of = np.repeat(np.arange(len(spans), dtype=np.int32), counts)
        firsts = np.array([first for first, _ in spans], dtype=np.int32) - starts[:-1]
        positions = np.arange(len(token_ids), dtype=np.int32) + firsts[segment_of]
        ids = np.array(token_ids, dtype=np.int32)
        pages = np.array([self._cache.table_of(r).address for r in rows], dtype=np.uint64)
        adapter_of = self._adapters_of(rows, counts)
        last = starts[1:] - 1
        outputs = np.arange(len(ids), dtype=np.int32) if ended is None else last[list(ended)]
        best = np.empty(len(outputs), dtype=np.int32)
        batch = structs.Batch(
            threads=torch.get_num_threads(),
            tokens=len(ids),
            segments=len(spans),
            outputs=len(outputs),
            token_ids=ids.ctypes.data,
            positions=positions.ctypes.data,
            segment_of=segment_of.ctypes.data,
            segment_start=starts.ctypes.data,
            pages=pages.ctypes.data,
            adapter_of=None if adapter_of is None else adapter_of.ctypes.data,
            output_tokens=outputs.ctypes.data,
            pool=self._cache.pool.address,
            logits=logits.ctypes.data,
            best=best.ctypes.data,
            **self._scratch_for(len(ids), len(outputs)),
        )
        self._forward(ctypes.byref(self._model.struct), ctypes.byref(batch))
        found: list[int] = best.tolist()
        return found

    def _adapters_of(
        self, rows: Sequence[Row], counts: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.int32] | None:
        """Each token's adapter by number, -1 for none; None where no token has one."""
        if all(row.adapter is None for row in rows):
            return None
        numbers = self._model.adapter_numbers
        each = [-1 if row.adapter is None else numbers[row.adapter] for row in rows]
        return np.repeat(np.array(each, dtype=np.int32), counts)

    def _scratch_for(self, tokens: int, outputs: int) -> dict[str, int]:
        m = self._model
        attention = m.num_heads * m.head_dim
        widest = max(m.hidden_size, attention, m.inner_size)
        panels = -(-m.vocab_size // PANEL)
        rows = -(-max(tokens, outputs) // SPARE_ROWS) * SPARE_ROWS
        sizes: dict[str, tuple[int, type]] = {
            "residual": (tokens * m.hidden_size, np.float32),
            "input": (rows * widest, self._library.active_type),
            "queries": (rows * widest, self._library.active_type),
            "wide": (tokens * (attention + 2 * m.num_kv_heads * m.head_dim), np.float32),
            "quantized": (rows * widest, self._library.quant_type),
            "quant_scale": (rows, np.float32),
            "low": (rows * m.adapter_columns, self._library.active_type),
            "best_value": (outputs * panels, np.float32),
            "best_index": (outputs * panels, np.int32),
        }
        for name, (size, kind) in sizes.items():
            held = self._scratch.get(name)
            if held is None or held.size < size:
                self._scratch[name] = np.empty(size, dtype=kind)
        addresses = {name: array.ctypes.data for name, array in self._scratch.items()}
        return addresses | {"low_stride": m.adapter_columns}


def _output(best: list[int], logits: torch.Tensor | None) -> Output:
    return Output(logits=logits, best=[None if token < 0 else token for token in best])
