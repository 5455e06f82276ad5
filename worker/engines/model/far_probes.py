"""Rows far behind their beginnings, at the price of a few tokens, for the check at load.

Such a row begins with one page again and again, up to its place: the keys and values of that page are read
once, and the row's cache has them repeated. To attention a key that is there n times is the same as one whose
score is greater by log n, so transformers reads the page once, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worker.engines.model.loading import LoadedModel

# Read behind each place, before the decode steps.
OWN_TOKENS = 20


@dataclass(frozen=True, slots=True)
class FarText:
    """``page`` repeated up to ``place``, a whole number of pages, and then ``own`` tokens."""

    page: Sequence[int]
    place: int
    own: Sequence[int]

    @property
    def token_ids(self) -> list[int]:
        return [*self.page] * (self.place // len(self.page)) + [*self.own]


def far_places(
    most_tokens: int, wanted: Sequence[int], *, longest: int, page_tokens: int
) -> list[int]:
    """Where to look in a context of ``most_tokens``: at its end and at the places ``wanted``, each at the
    beginning of its page; none before ``longest``, which is read anyway."""
    places = [place for place in (*wanted, most_tokens) if place <= most_tokens]
    pages = {place // page_tokens for place in places}
    return sorted(page * page_tokens for page in pages if page * page_tokens >= longest)


def far_logits(loaded: LoadedModel, texts: Sequence[FarText]) -> list[torch.Tensor]:
    """Transformers' logits after each of the texts' own tokens, ``[own, vocab]`` for each text.

    The page and all own tokens are one forward pass. The model's attention is "sdpa" meanwhile.
    """
    page = list(texts[0].page)
    token_ids = page + [token for text in texts for token in text.own]
    positions = [*range(len(page))]
    for text in texts:
        positions += range(text.place, text.place + len(text.own))
    device = loaded.device
    logits = loaded.model(
        input_ids=torch.tensor([token_ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        attention_mask=_masks(loaded, texts),
        use_cache=False,
    ).logits[0]
    return list(logits[len(page) :].split([len(text.own) for text in texts]))


def _masks(loaded: LoadedModel, texts: Sequence[FarText]) -> Any:
    """As transformers wants them: one, or one for each type of layers."""
    windows = set(loaded.windows)
    if len(windows) == 1:
        return _mask(loaded, texts, windows.pop())
    [window] = windows - {None}
    return {
        "full_attention": _mask(loaded, texts, None),
        "sliding_attention": _mask(loaded, texts, window),
    }


def _mask(loaded: LoadedModel, texts: Sequence[FarText], window: int | None) -> torch.Tensor:
    """What is added to the scores, ``[1, 1, tokens, tokens]``: -inf for keys out of sight."""
    start = len(texts[0].page)
    size = start + sum(len(text.own) for text in texts)
    times = torch.zeros((size, size), dtype=torch.float64)
    page = torch.arange(start)
    times[:start, :start] = _seen(page, page, window)
    for text in texts:
        stop = start + len(text.own)
        queries = torch.arange(text.place, text.place + len(text.own))
        before = _seen(queries, torch.arange(text.place), window)
        times[start:stop, : len(page)] = before.view(len(queries), -1, len(page)).sum(1)
        times[start:stop, start:stop] = _seen(queries, queries, window)
        start = stop
    return times.log().to(loaded.device, loaded.dtype)[None, None]


def _seen(queries: torch.Tensor, keys: torch.Tensor, window: int | None) -> torch.Tensor:
    seen = keys <= queries[:, None]
    return seen if window is None else seen & (keys > queries[:, None] - window)
