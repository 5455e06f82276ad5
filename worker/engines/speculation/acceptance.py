"""How likely a row's next drafted token is right, as learned from its earlier drafts."""

# Before anything is known, by the length of the match: from 2^(i - 1) tokens on.
_PRIOR = (0.1, 0.2, 0.4, 0.5, 0.7, 0.85, 0.9)
# The prior counts as much as so many tokens; what was seen counts less with each later draft.
_PRIOR_TOKENS = 2.0
_KEPT = 0.9
# While nothing is drafted it fades as well, so that a row is tried again.
_KEPT_IDLE = 0.98


class Acceptance:
    """Of one row, apart for matches of different lengths."""

    def __init__(self) -> None:
        self._right = [0.0] * len(_PRIOR)
        self._tried = [0.0] * len(_PRIOR)

    def chance(self, matched: int) -> float:
        """That a token drafted after ``matched`` equal ones is right, if those before it are."""
        i = _place(matched)
        return (self._right[i] + _PRIOR_TOKENS * _PRIOR[i]) / (self._tried[i] + _PRIOR_TOKENS)

    def learn(self, matched: int, *, drafted: int, accepted: int) -> None:
        """The first ``accepted`` tokens of a draft were right; after a wrong one nothing is known."""
        i = _place(matched)
        self._right[i] = self._right[i] * _KEPT + accepted
        self._tried[i] = self._tried[i] * _KEPT + min(accepted + 1, drafted)

    def pass_over(self, matched: int) -> None:
        """A match was not drafted from."""
        i = _place(matched)
        self._right[i] *= _KEPT_IDLE
        self._tried[i] *= _KEPT_IDLE


def _place(matched: int) -> int:
    return min(matched.bit_length(), len(_PRIOR) - 1)
