"""What a decode step costs by its tokens, and which drafts are worth theirs."""

import heapq
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate

# Drafted tokens of a step, over all rows.
MOST_DRAFTED = 48
# Drafts must promise to be so much faster than none: chances and costs are estimates.
LEAST_GAIN = 1.1


class StepCost:
    """Seconds of a step by its tokens, between and beyond the sizes measured as on a line.

    Where more tokens were faster than fewer, another program had disturbed those.
    """

    def __init__(self, measured: Mapping[int, float]) -> None:
        assert len(measured) >= 2
        self._sizes = sorted(measured)
        downwards = accumulate((measured[size] for size in reversed(self._sizes)), min)
        self._seconds = [*downwards][::-1]
        self.can_gain = cache(self._can_gain)

    @classmethod
    def free_drafts(cls) -> "StepCost":
        """What is assumed before anything was measured."""
        return cls({1: 1.0, 2: 1.0})

    def seconds(self, tokens: int) -> float:
        i = min(max(bisect_left(self._sizes, tokens), 1), len(self._sizes) - 1)
        left, right = self._sizes[i - 1], self._sizes[i]
        slope = (self._seconds[i] - self._seconds[i - 1]) / (right - left)
        return self._seconds[i] + slope * (tokens - right)

    def _can_gain(self, rows: int) -> bool:
        """Whether drafts for so many rows would pay if each token were right."""
        without = rows / self.seconds(rows)
        return any(
            (rows + more) / self.seconds(rows + more) >= LEAST_GAIN * without
            for more in range(1, MOST_DRAFTED + 1)
        )

    def lengths(self, rows: int, chances: Sequence[float], most: Sequence[int]) -> list[int]:
        """How many tokens to draft for each, at most ``most``, for the most tokens a second; of a step of
        so many ``rows``, some of which have drafts. ``chances`` are of each token, if those before it
        are right."""
        lengths = [0] * len(chances)
        best, best_speed = lengths[:], LEAST_GAIN * rows / self.seconds(rows)
        candidates = [(-p, i) for i, p in enumerate(chances) if most[i] > 0]
        heapq.heapify(candidates)
        expected = float(rows)
        for drafted in range(1, MOST_DRAFTED + 1):
            if not candidates:
                break
            gain, i = candidates[0]
            expected -= gain
            lengths[i] += 1
            if lengths[i] < most[i]:
                heapq.heapreplace(candidates, (gain * chances[i], i))
            else:
                heapq.heappop(candidates)
            speed = expected / self.seconds(rows + drafted)
            if speed > best_speed:
                best, best_speed = lengths[:], speed
        return best
