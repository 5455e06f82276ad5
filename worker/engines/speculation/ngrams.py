"""Where n-grams of known texts occurred last, and what came next there (prompt lookup decoding)."""

from collections.abc import Sequence
from dataclasses import dataclass

# Looked up in this order: a long one seldom stands in the wrong place.
SIZES = (8, 3)
# No further is compared how much of the text before agrees.
LONGEST_MATCH = 32


@dataclass(frozen=True, slots=True)
class Match:
    """``text`` goes on at ``end``, after ``matched`` tokens that a row ends with as well."""

    text: Sequence[int]
    end: int
    matched: int

    def draft(self, count: int) -> list[int]:
        """The next tokens, so many. A text that ends before is taken to repeat itself from ``end`` on: it
        is the row's own."""
        draft = list(self.text[self.end : self.end + count])
        period = len(self.text) - self.end
        while len(draft) < count:
            draft.append(draft[-period])
        return draft


class Ngrams:
    """Owns, for each n-gram, the last text and place at which it ended with something behind it."""

    def __init__(self) -> None:
        self._ends: dict[int, dict[tuple[int, ...], tuple[Sequence[int], int]]] = {
            size: {} for size in SIZES
        }

    def add(self, text: Sequence[int], start: int = 0) -> None:
        """Take the n-grams of the text that end behind ``start`` and before its last token."""
        for size, ends in self._ends.items():
            for end in range(max(start, size), len(text)):
                ends[tuple(text[end - size : end])] = (text, end)

    def remove(self, text: Sequence[int]) -> None:
        """Forget what is known from this text."""
        for size, ends in self._ends.items():
            for end in range(size, len(text)):
                ngram = tuple(text[end - size : end])
                known = ends.get(ngram)
                if known is not None and known[0] is text:
                    del ends[ngram]

    def find(self, tokens: Sequence[int]) -> Match | None:
        """Where the longest n-gram that these tokens end with occurred last."""
        for size, ends in self._ends.items():
            known = ends.get(tuple(tokens[-size:]))
            if known is not None:
                text, end = known
                return Match(text, end, _matched(text, end, tokens, size))
        return None


def _matched(text: Sequence[int], end: int, tokens: Sequence[int], known: int) -> int:
    most = min(LONGEST_MATCH, end, len(tokens))
    matched = known
    while matched < most and text[end - matched - 1] == tokens[-matched - 1]:
        matched += 1
    return matched
