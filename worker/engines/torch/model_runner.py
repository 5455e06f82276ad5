"""The one place that calls the model: prefill of a group, a decode step of the batch."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from worker.engines.sampling.sampling import Output
from worker.engines.sampling.transfer import to_device
from worker.engines.scheduling.prefill import Chunk
from worker.engines.scheduling.row import Row
from worker.engines.torch.adapters import TokenGroups
from worker.engines.torch.attention import DecodePlan, Plan, PlanCache, PrefillPlan
from worker.engines.torch.kv_cache import KVCache
from worker.engines.torch.replay import DecodeReplay, Recorder


class ModelRunner:
    """``model`` is a transformers causal language model that uses our attention.

    ``adapters`` tells its layers which tokens belong to which adapter; None without adapters.
    ``record`` captures decode steps; None computes each one.
    """

    def __init__(
        self,
        model: Any,
        windows: Sequence[int | None],
        cache: KVCache,
        adapters: TokenGroups | None = None,
        *,
        record: Recorder | None = None,
    ) -> None:
        assert adapters is None or record is None
        self._adapters = adapters
        self._model = model
        self._windows = tuple(windows)
        self._cache = cache
        self._device = cache.layout.device
        self._replay: DecodeReplay | None = None
        if record is not None:
            self._replay = DecodeReplay(cache, self._windows, self._decode_forward, record)

    def read(self, chunk: Chunk, *, logits: bool = False) -> Output:
        positions = [n for _, start, stop in chunk.pieces for n in range(start, stop)]
        inputs = to_device([chunk.token_ids, positions], self._device)
        plan = PrefillPlan(chunk.pieces, self._cache, self._windows)
        self._select((row.adapter, stop - start) for row, start, stop in chunk.pieces)
        # No logits but of the last tokens: over all, they would outgrow the model.
        last = to_device([plan.ends[i] - 1 for i in chunk.ended], self._device, torch.int64)
        return Output(self._forward(inputs[:1], inputs[1:], plan, last)[0])

    def decode(self, rows: Sequence[Row], *, logits: bool = False) -> tuple[list[Row], Output]:
        """A step covers all rows of the buckets. Rows that are still being prefilled compute their
        next token in vain: the chunk that reads it again writes the same values."""
        placed, found = self._step()
        if len(placed) == len(rows):
            return placed, Output(found)
        wanted = {row.id for row in rows}
        places = [i for i, row in enumerate(placed) if row.id in wanted]
        return [placed[i] for i in places], Output(found[to_device(places, self._device)])

    def _step(self) -> tuple[list[Row], torch.Tensor]:
        """The rows of the buckets, in order, and their logits."""
        replayed = None if self._replay is None else self._replay.decode()
        if replayed is not None:
            return replayed
        buckets = self._cache.buckets()
        rows = [row for bucket in buckets for row in bucket.rows]
        inputs = [[row.next_token_id for row in rows], [row.read_tokens for row in rows]]
        self._select((row.adapter, 1) for row in rows)
        token_ids, positions = to_device(inputs, self._device)
        plan = DecodePlan.of_rows(buckets, positions, self._windows)
        return rows, self._decode_forward(token_ids[:, None], positions[:, None], plan)

    def trim(self) -> None:
        if self._replay is not None:
            self._replay.drop()

    def _decode_forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, plan: Plan
    ) -> torch.Tensor:
        return self._forward(token_ids, positions, plan, 1)[:, 0]

    def _select(self, spans: Iterable[tuple[str | None, int]]) -> None:
        if self._adapters is not None:
            self._adapters.select(spans)

    def _forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        plan: Plan,
        logits_to_keep: int | torch.Tensor,
    ) -> torch.Tensor:
        output = self._model(
            input_ids=token_ids,
            position_ids=positions,
            past_key_values=PlanCache(plan),
            use_cache=True,
            logits_to_keep=logits_to_keep,
            plan=plan,
        )
        logits: torch.Tensor = output.logits
        return logits
