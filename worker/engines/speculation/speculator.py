"""Drafts for the rows of a decode step, from their own texts and from those of rows that have ended."""

from collections.abc import Callable, Sequence

from worker.engines.scheduling.row import Row
from worker.engines.speculation.acceptance import Acceptance
from worker.engines.speculation.finished_texts import FinishedTexts
from worker.engines.speculation.ngrams import Match, Ngrams
from worker.engines.speculation.step_cost import StepCost

# Tokens of finished outputs that are kept: some 20 MB with what finds them.
FINISHED_TOKENS = 65_536


class _Followed:
    """A row's own text and how its drafts have fared. ``matched`` is the match of the latest draft."""

    def __init__(self) -> None:
        self.acceptance = Acceptance()
        self.matched = 0
        self.left_alone = False
        self._tokens: list[int] = []
        self._ngrams = Ngrams()

    def find(self, row: Row, finished: FinishedTexts) -> Match | None:
        """Of the row's own text and the finished ones, what agrees with the row for longest."""
        known = len(self._tokens)
        if not self._tokens:
            self._tokens += row.prompt_token_ids
        self._tokens += row.token_ids[len(self._tokens) - len(row.prompt_token_ids) :]
        self._ngrams.add(self._tokens, known)
        own = self._ngrams.find(self._tokens)
        other = finished.find(_key(row), self._tokens)
        if own is None or (other is not None and other.matched > own.matched):
            return other
        return own


class Speculator:
    """Owns the texts and the chances. A draft decides how fast a row gets its tokens, and never which.

    At most ``most_tokens`` are drafted for a row; 0 drafts and keeps nothing. ``costs`` says what they
    take, as soon as that was measured.
    """

    def __init__(self, most_tokens: int) -> None:
        self.costs = StepCost.free_drafts()
        self.most_tokens = most_tokens
        self._finished = FinishedTexts(FINISHED_TOKENS)
        self._followed: dict[str, _Followed] = {}

    def drafts(
        self, rows: Sequence[Row], room_tokens: Callable[[Row], int]
    ) -> dict[str, list[int]]:
        """Tokens that may come next, by the ids of the rows that have any; no more than a row has room
        for, nor than it can still take."""
        if not self.most_tokens or not self.costs.can_gain(len(rows)):
            return {}
        found: list[tuple[Row, _Followed, Match]] = []
        for row in rows:
            followed = self._followed.setdefault(row.id, _Followed())
            match = None if followed.left_alone else followed.find(row, self._finished)
            if match is not None:
                found.append((row, followed, match))
        lengths = self.costs.lengths(
            len(rows),
            [followed.acceptance.chance(match.matched) for _, followed, match in found],
            [self._most(row, match, room_tokens(row)) for row, _, match in found],
        )
        drafts: dict[str, list[int]] = {}
        for (row, followed, match), length in zip(found, lengths, strict=True):
            followed.matched = match.matched
            if length:
                drafts[row.id] = match.draft(length)
            else:
                followed.acceptance.pass_over(match.matched)
        return drafts

    def verified(self, row: Row, *, drafted: int, accepted: int) -> None:
        followed = self._followed[row.id]
        followed.acceptance.learn(followed.matched, drafted=drafted, accepted=accepted)

    def leave_alone(self, row: Row) -> None:
        """Draft nothing more for it."""
        self._followed[row.id].left_alone = True

    def ended(self, row: Row) -> None:
        """Others may be drafted from what the row has generated."""
        self._followed.pop(row.id, None)
        if self.most_tokens:
            self._finished.add(_key(row), row.token_ids)

    def _most(self, row: Row, match: Match, room_tokens: int) -> int:
        # The token that is drawn after the last drafted one ends the row at the latest.
        left = row.sampling.max_tokens - len(row.token_ids) - 1
        return max(0, min(self.most_tokens, room_tokens, left))


def _key(row: Row) -> tuple[str | None, str]:
    return row.adapter, row.cache_salt
