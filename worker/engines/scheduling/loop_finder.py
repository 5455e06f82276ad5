"""Detects rows that repeat themselves, with a small constant cost for each token."""

from collections import deque

# The longest run of tokens whose repetition is noticed.
LONGEST_LOOP_TOKENS = 64
# Less than this may well be meant: a rule of dashes, a row of a table.
SHORTEST_SPAN_TOKENS = 32


class LoopFinder:
    """Looks for tokens at the end that are one n-gram, n up to 64, at least ``repeats`` times in a
    row and over at least 32 tokens.

    For each n it keeps how many of the last tokens equal the one n places before: a token costs 64
    comparisons at most, however long the row is.
    """

    def __init__(self, repeats: int) -> None:
        assert repeats >= 2
        self._repeats = repeats
        self._recent: deque[int] = deque(maxlen=LONGEST_LOOP_TOKENS)  # newest first
        self._matched: dict[int, int] = {}

    def push(self, token_id: int) -> bool:
        """Take the next token. Whether the tokens so far end in such a loop."""
        self._matched = {
            size: self._matched.get(size, 0) + 1
            for size, earlier in enumerate(self._recent, 1)
            if earlier == token_id
        }
        self._recent.appendleft(token_id)
        return any(
            size + matched >= max(size * self._repeats, SHORTEST_SPAN_TOKENS)
            for size, matched in self._matched.items()
        )
