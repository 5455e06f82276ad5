"""Recent rates and shares, for the worker registry. Pure: the clock is passed in."""

from collections import deque
from dataclasses import dataclass, field

from millpond.messages.worker_state import WorkerRates

WINDOW_S = 30.0


@dataclass(slots=True)
class Rates:
    """Sums over a sliding window of `WINDOW_S`. Times are seconds of one monotonic clock."""

    started_s: float
    _ended: deque[tuple[float, int]] = field(default_factory=deque)
    jobs_total: int = 0
    tokens_total: int = 0
    row_steps_total: int = 0
    slot_steps_total: int = 0

    def job_ended(self, now_s: float, output_tokens: int) -> None:
        self._ended.append((now_s, output_tokens))
        self.jobs_total += 1
        self.tokens_total += output_tokens

    def stepped(self, rows: int, slots: int) -> None:
        self.row_steps_total += rows
        self.slot_steps_total += slots

    def snapshot(self, now_s: float) -> WorkerRates:
        while self._ended and self._ended[0][0] < now_s - WINDOW_S:
            self._ended.popleft()
        span_s = max(1.0, min(WINDOW_S, now_s - self.started_s))
        return WorkerRates(
            jobs_per_s=round(len(self._ended) / span_s, 3),
            tokens_per_s=round(sum(n for _, n in self._ended) / span_s, 1),
            jobs_total=self.jobs_total,
            tokens_total=self.tokens_total,
            slot_share=round(self.row_steps_total / max(1, self.slot_steps_total), 4),
        )
