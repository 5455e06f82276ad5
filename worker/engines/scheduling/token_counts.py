"""Which tokens a row has seen, and how often it generated each."""

from array import array
from collections.abc import Iterable


class TokenCounts:
    """``token_ids`` are distinct, in the order of their first appearance; ``counts`` says how often
    each was added. The tokens it begins with count 0."""

    def __init__(self, seen: Iterable[int] = ()) -> None:
        self._place = {token_id: place for place, token_id in enumerate(dict.fromkeys(seen))}
        self.token_ids = array("q", self._place)
        self.counts = array("q", bytes(self.token_ids.itemsize * len(self.token_ids)))

    def add(self, token_id: int) -> None:
        place = self._place.setdefault(token_id, len(self.token_ids))
        if place == len(self.token_ids):
            self.token_ids.append(token_id)
            self.counts.append(0)
        self.counts[place] += 1
