"""The one place that calls the model: prefill of a group, a decode step of the batch."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from millpond.memory_plan import PREFILL_TOKENS
from worker.engines.sequence import Row
from worker.engines.transformers.adapters import TokenGroups
from worker.engines.transformers.attention import DecodePlan, Plan, PlanCache, PrefillPlan
from worker.engines.transformers.chunks import cut_chunks, tokens_of
from worker.engines.transformers.kv_cache import KVCache
from worker.engines.transformers.replay import DecodeReplay, Recorder
from worker.engines.transformers.sampling import Output
from worker.engines.transformers.transfer import to_device


class ModelRunner:
    """``model`` is a transformers causal language model that uses our attention.

    ``adapters`` is what its layers ask which tokens are whose; None without adapters.
    ``record`` makes recordings of decode steps; None computes each anew.
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

    def prefill(self, rows: Sequence[Row], *, logits: bool = False) -> Output:
        """Read all tokens of these rows, which have their slots already; logits after the last."""
        scores: list[torch.Tensor] = []
        for chunk in cut_chunks([(row, 0) for row in rows], PREFILL_TOKENS):
            token_ids = [t for piece in chunk.pieces for t in tokens_of(*piece)]
            positions = [n for _, start, stop in chunk.pieces for n in range(start, stop)]
            inputs = to_device([token_ids, positions], self._device)
            plan = PrefillPlan(chunk.pieces, self._cache, self._windows)
            self._select((row.adapter, stop - start) for row, start, stop in chunk.pieces)
            # No logits but of the last tokens: over all, they would outgrow the model.
            last = to_device([plan.ends[i] - 1 for i in chunk.ended], self._device, torch.int64)
            found = self._forward(inputs[:1], inputs[1:], plan, last)[0]
            if chunk.ended:
                scores.append(found)
        return Output(scores[0] if len(scores) == 1 else torch.cat(scores))

    def decode(self, *, logits: bool = False) -> tuple[list[Row], Output]:
        """Read the newest token of each row in the cache; the rows in the order of the output."""
        replayed = None if self._replay is None else self._replay.decode()
        if replayed is not None:
            rows, found = replayed
            return rows, Output(found)
        shelves = self._cache.shelves()
        rows = [row for shelf in shelves for row in shelf.rows]
        newest = [[row.token_ids[-1] for row in rows], [row.num_tokens - 1 for row in rows]]
        self._select((row.adapter, 1) for row in rows)
        token_ids, positions = to_device(newest, self._device)
        plan = DecodePlan.of_rows(shelves, positions, self._windows)
        return rows, Output(self._decode_forward(token_ids[:, None], positions[:, None], plan))

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
