"""Outputs of rows that have ended, to draft from for rows to come (as SuffixDecoding does)."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from worker.engines.speculation.ngrams import Match, Ngrams


class FinishedTexts:
    """Keeps the latest outputs, ``most_tokens`` in all. Rows find only what was kept under their own key:
    how fast a draft makes a row would tell what others have been answered."""

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._num_tokens = 0
        self._ngrams: dict[Hashable, Ngrams] = {}
        self._texts: OrderedDict[int, tuple[Hashable, tuple[int, ...]]] = OrderedDict()
        self._added = 0
        self._held: dict[Hashable, int] = {}

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def add(self, key: Hashable, token_ids: Sequence[int]) -> None:
        text = tuple(token_ids[-self._most_tokens :])
        if not text:
            return
        self._ngrams.setdefault(key, Ngrams()).add(text)
        self._texts[self._added] = (key, text)
        self._added += 1
        self._num_tokens += len(text)
        self._held[key] = self._held.get(key, 0) + 1
        while self._num_tokens > self._most_tokens:
            self._forget_oldest()

    def find(self, key: Hashable, tokens: Sequence[int]) -> Match | None:
        ngrams = self._ngrams.get(key)
        return None if ngrams is None else ngrams.find(tokens)

    def _forget_oldest(self) -> None:
        _, (key, text) = self._texts.popitem(last=False)
        self._num_tokens -= len(text)
        self._held[key] -= 1
        if self._held[key]:
            self._ngrams[key].remove(text)
        else:
            del self._held[key], self._ngrams[key]
