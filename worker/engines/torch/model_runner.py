"""The one place that calls the model: whatever is to be read, in one packed pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from worker.engines.paging.pages import PagedCache
from worker.engines.sampling.sampling import Output
from worker.engines.sampling.transfer import array_to_device, to_device
from worker.engines.scheduling.prefill import Chunk
from worker.engines.scheduling.row import Row
from worker.engines.torch.adapters import RowAdapters
from worker.engines.torch.attention import Attention, BatchCache
from worker.engines.torch.batch import NO_ADAPTER, Batch, Piece, Shape, pack, shape_of
from worker.engines.torch.graphs import DecodeGraphs, Recorder
from worker.engines.torch.kv_pool import KVPool


class ModelRunner:
    """``model`` is a transformers causal language model that uses our attention.

    ``adapters`` tells its layers which tokens belong to which adapter; None without adapters. ``record``
    captures decode steps of up to ``slots`` rows and ``row_tokens`` a row; None computes each one.
    """

    def __init__(
        self,
        model: Any,
        windows: Sequence[int | None],
        cache: PagedCache[KVPool],
        attention: Attention,
        adapters: RowAdapters | None = None,
        *,
        record: Recorder | None = None,
        slots: int = 0,
        row_tokens: int = 0,
    ) -> None:
        self._adapters = adapters
        self._model = model
        self._windows = tuple(windows)
        self._cache = cache
        self._attention = attention
        self._device = cache.pool.layout.device
        self.graphs: DecodeGraphs | None = None
        if record is not None:
            self.graphs = DecodeGraphs(
                self._forward,
                record,
                lambda shape: self._pack(shape, [], []),
                slots=slots,
                pages=-(-row_tokens // cache.page_tokens),
                page_tokens=cache.page_tokens,
                device=self._device,
            )

    @torch.inference_mode()
    def warm_up(self) -> None:
        if self.graphs is not None:
            self.graphs.capture()

    def read(self, chunk: Chunk, *, logits: bool = False) -> Output:
        # No logits but of the last tokens: over all, they would outgrow the model.
        ends = np.cumsum([stop - start for _, start, stop in chunk.pieces])
        last = to_device([int(ends[i]) - 1 for i in chunk.ended], self._device, torch.int64)
        return Output(self._forward(self._batch(chunk.pieces, chunk.token_ids), last))

    def decode(self, rows: Sequence[Row], *, logits: bool = False) -> tuple[list[Row], Output]:
        # Rows of like length side by side, for attention that reads those together.
        rows = sorted(rows, key=_read_tokens)
        pieces = [(row, row.read_tokens, row.read_tokens + 1) for row in rows]
        token_ids = [row.next_token_id for row in rows]
        shape = None if self.graphs is None else self.graphs.shape_for(len(rows))
        if shape is None:
            return rows, Output(self._forward(self._batch(pieces, token_ids)))
        assert self.graphs is not None
        found = self.graphs.run(shape, self._pack(shape, pieces, token_ids))
        return rows, Output(found[: len(rows)])

    def trim(self) -> None:
        """All that is kept between passes was counted when the cache was sized."""

    def _batch(self, pieces: Sequence[Piece], token_ids: Sequence[int]) -> Batch:
        shape = shape_of(pieces, self._cache.page_tokens)
        numbers = array_to_device(self._pack(shape, pieces, token_ids), self._device)
        spans = [(start, stop) for _, start, stop in pieces]
        adapted = any(row.adapter is not None for row, _, _ in pieces)
        return Batch(shape, numbers, spans, adapted=adapted)

    def _pack(
        self, shape: Shape, pieces: Sequence[Piece], token_ids: Sequence[int]
    ) -> npt.NDArray[np.int32]:
        adapters = [
            NO_ADAPTER if self._adapters is None else self._adapters.number(row.adapter)
            for row, _, _ in pieces
        ]
        return pack(shape, pieces, token_ids, adapters, self._cache)

    def _forward(self, batch: Batch, logits_to_keep: int | torch.Tensor = 0) -> torch.Tensor:
        """Logits of the tokens to keep, ``[tokens, vocab]``; 0 keeps all."""
        if self._adapters is None or not batch.adapted:
            return self._call(batch, logits_to_keep)
        with self._adapters.of(batch.adapters):
            return self._call(batch, logits_to_keep)

    def _call(self, batch: Batch, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
        cache = BatchCache(batch, self._cache.pool, self._windows, self._attention)
        output = self._model(
            input_ids=batch.token_ids[None],
            position_ids=batch.positions[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=logits_to_keep,
            batch=cache,
        )
        logits: torch.Tensor = output.logits[0]
        return logits


def _read_tokens(row: Row) -> int:
    return row.read_tokens
