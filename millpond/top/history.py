"""What the view remembers: how many jobs had ended when, and the last ones that did. Pure."""

import itertools
from collections import deque
from dataclasses import dataclass, field

from millpond.messages import JobResult, JobStatus

KEPT_S = 60.0
RATE_OVER_S = 5.0
KEPT_ENDINGS = 500


@dataclass(frozen=True, slots=True)
class Ending:
    """One job's end. Milliseconds; None where no worker ran it to its end."""

    queue: str
    id: str
    status: JobStatus
    reason: str
    at_s: float
    wait_ms: float | None = None
    first_token_ms: float | None = None
    run_ms: float | None = None
    tokens: int = 0

    @classmethod
    def of(cls, queue: str, result: JobResult, at_s: float) -> "Ending":
        receipt, usage = result.receipt, result.usage
        reason = result.finish_reason.value if result.error is None else result.error.code
        tokens = 0 if usage is None else usage.completion_tokens
        if receipt is None:
            return cls(queue, result.id, result.status, reason, at_s, tokens=tokens)
        return cls(
            queue,
            result.id,
            result.status,
            reason,
            at_s,
            wait_ms=receipt.queue_wait_ms,
            first_token_ms=receipt.first_token_ms,
            run_ms=receipt.run_ms,
            tokens=tokens,
        )


@dataclass(slots=True)
class History:
    """Of all queues together; times are seconds of one monotonic clock."""

    _totals: deque[tuple[float, int]] = field(default_factory=deque)
    endings: deque[Ending] = field(default_factory=lambda: deque(maxlen=KEPT_ENDINGS))

    def ended(self, now_s: float, total: int) -> None:
        """So many jobs have ended since the queues were made."""
        self._totals.append((now_s, total))
        while self._totals[0][0] < now_s - KEPT_S:
            self._totals.popleft()

    def jobs_per_s(self, now_s: float) -> float:
        """Over the last seconds."""
        recent = [entry for entry in self._totals if entry[0] >= now_s - RATE_OVER_S]
        if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
            return 0.0
        return max(0.0, (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0]))

    def jobs_each_second(self) -> list[float]:
        """From look to look, the oldest first."""
        looks = list(self._totals)
        return [
            max(0.0, (later[1] - before[1]) / (later[0] - before[0]))
            for before, later in itertools.pairwise(looks)
            if later[0] > before[0]
        ]

    def last_minute(self, now_s: float) -> list[Ending]:
        return [ending for ending in self.endings if ending.at_s >= now_s - KEPT_S]


def percentile(values: list[float], share: float) -> float | None:
    """The nearest rank; None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
