"""The one place that calls the model: prefill of a group, a decode step of the batch."""

from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import Any

import torch

from millpond.memory_plan import PREFILL_TOKENS
from worker.engines.sequence import Sequence
from worker.engines.transformers.adapters import TokenGroups
from worker.engines.transformers.attention import DecodePlan, Plan, PlanCache, PrefillPlan
from worker.engines.transformers.chunks import cut_chunks, tokens_of
from worker.engines.transformers.kv_cache import KVCache
from worker.engines.transformers.sampling import Output


class ModelRunner:
    """``model`` is a transformers causal language model that uses our attention.

    ``adapters`` is what its layers ask which tokens are whose; None without adapters.
    """

    def __init__(
        self,
        model: Any,
        windows: Items[int | None],
        cache: KVCache,
        adapters: TokenGroups | None = None,
    ) -> None:
        self._adapters = adapters
        self._model = model
        self._windows = tuple(windows)
        self._cache = cache
        self._device = cache.layout.device

    def prefill(self, rows: Items[Sequence], *, logits: bool = False) -> Output:
        """Read all tokens of these rows, which have their slots already; logits after the last."""
        scores: list[torch.Tensor] = []
        for chunk in cut_chunks([(row, 0) for row in rows], PREFILL_TOKENS):
            token_ids = [t for piece in chunk.pieces for t in tokens_of(*piece)]
            positions = [n for _, start, stop in chunk.pieces for n in range(start, stop)]
            plan = PrefillPlan(chunk.pieces, self._cache, self._windows)
            self._select((row.adapter, stop - start) for row, start, stop in chunk.pieces)
            # No logits but of the last tokens: over all, they would outgrow the model.
            last = torch.tensor([plan.ends[i] - 1 for i in chunk.ended], dtype=torch.int64)
            found = self._forward([token_ids], [positions], plan, last)[0]
            if chunk.ended:
                scores.append(found)
        return Output(scores[0] if len(scores) == 1 else torch.cat(scores))

    def decode(self, *, logits: bool = False) -> tuple[list[Sequence], Output]:
        """Read the newest token of each row in the cache; the rows in the order of the output."""
        plan = DecodePlan(self._cache, self._windows)
        self._select((row.adapter, 1) for row in plan.rows)
        token_ids = [[row.token_ids[-1]] for row in plan.rows]
        positions = [[row.num_tokens - 1] for row in plan.rows]
        return plan.rows, Output(self._forward(token_ids, positions, plan, 1)[:, 0])

    def _select(self, spans: Iterable[tuple[str | None, int]]) -> None:
        if self._adapters is not None:
            self._adapters.select(spans)

    def _forward(
        self,
        token_ids: list[list[int]],
        positions: list[list[int]],
        plan: Plan,
        logits_to_keep: int | torch.Tensor,
    ) -> torch.Tensor:
        if isinstance(logits_to_keep, torch.Tensor):
            logits_to_keep = logits_to_keep.to(self._device)
        output = self._model(
            input_ids=torch.tensor(token_ids, device=self._device),
            position_ids=torch.tensor(positions, device=self._device),
            past_key_values=PlanCache(plan),
            use_cache=True,
            logits_to_keep=logits_to_keep,
            plan=plan,
        )
        logits: torch.Tensor = output.logits
        return logits
