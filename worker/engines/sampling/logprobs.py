"""Log-probabilities as the model gave them, before any bias, penalty or filter."""

from collections.abc import Sequence

import torch

from millpond.messages.sampling_params import MAX_LOGPROBS
from worker.engines.base import TokenLogprobs
from worker.engines.sampling.transfer import to_device
from worker.engines.scheduling.row import Row


class RawLogprobs:
    """Of the rows that ask for them; made before sampling changes ``[rows, vocab]`` logits in place."""

    def __init__(self, logits: torch.Tensor, rows: Sequence[Row]) -> None:
        asked = [(i, row.sampling.logprobs) for i, row in enumerate(rows)]
        self._counts = {i: count for i, count in asked if count is not None}
        if self._counts:
            index = to_device(list(self._counts), logits.device)
            self._scores = logits[index].float().log_softmax(dim=-1)

    def of(self, tokens: Sequence[int | None]) -> list[TokenLogprobs | None]:
        """Those of each row's token and of the likeliest ones; None for rows that ask for none."""
        found: list[TokenLogprobs | None] = [None] * len(tokens)
        if not self._counts:
            return found
        # Always as many, so that which of equal ones come last is up to the row alone.
        top, top_ids = self._scores.topk(min(MAX_LOGPROBS, self._scores.shape[-1]), dim=-1)
        chosen = torch.tensor([[tokens[i] or 0] for i in self._counts], device=top.device)
        own = self._scores.gather(1, chosen)[:, 0].tolist()
        read = zip(self._counts.items(), own, top.tolist(), top_ids.tolist(), strict=True)
        for (i, count), logprob, scores, token_ids in read:
            pairs = zip(token_ids, scores, strict=True)
            best = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
            found[i] = TokenLogprobs(logprob, tuple(best[:count]))
        return found
