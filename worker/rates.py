"""Recent rates, percentiles and shares, for the worker registry. Pure: the clock is passed in."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from millpond.messages.worker_state import WorkerRates

WINDOW_S = 30.0
# Percentiles are of the last jobs, so many at most: sorting more would hold up the loop.
MAX_SAMPLES = 512


@dataclass(frozen=True, slots=True)
class _Ended:
    at_s: float
    output_tokens: int


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    wait_s: float
    latency_s: float


@dataclass(slots=True)
class Rates:
    """Sums over a sliding window of `WINDOW_S`. Times are seconds of one monotonic clock."""

    started_s: float
    _ended: deque[_Ended] = field(default_factory=deque)
    _samples: deque[_Sample] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    jobs_total: int = 0
    tokens_total: int = 0
    row_steps_total: int = 0
    slot_steps_total: int = 0

    def job_ended(
        self, now_s: float, output_tokens: int, *, wait_s: float, latency_s: float
    ) -> None:
        """``wait_s`` is from its acceptance to its claim, ``latency_s`` to now."""
        self._ended.append(_Ended(now_s, output_tokens))
        self._samples.append(_Sample(now_s, wait_s, latency_s))
        self.jobs_total += 1
        self.tokens_total += output_tokens

    def stepped(self, rows: int, slots: int) -> None:
        self.row_steps_total += rows
        self.slot_steps_total += slots

    def snapshot(self, now_s: float) -> WorkerRates:
        while self._ended and self._ended[0].at_s < now_s - WINDOW_S:
            self._ended.popleft()
        while self._samples and self._samples[0].at_s < now_s - WINDOW_S:
            self._samples.popleft()
        span_s = max(1.0, min(WINDOW_S, now_s - self.started_s))
        waits = sorted(sample.wait_s for sample in self._samples)
        latencies = sorted(sample.latency_s for sample in self._samples)
        return WorkerRates(
            jobs_per_s=round(len(self._ended) / span_s, 3),
            tokens_per_s=round(sum(one.output_tokens for one in self._ended) / span_s, 1),
            wait_p50_ms=_percentile_ms(waits, 0.5),
            wait_p90_ms=_percentile_ms(waits, 0.9),
            latency_p50_ms=_percentile_ms(latencies, 0.5),
            latency_p90_ms=_percentile_ms(latencies, 0.9),
            jobs_total=self.jobs_total,
            tokens_total=self.tokens_total,
            slot_share=round(self.row_steps_total / max(1, self.slot_steps_total), 4),
        )


def _percentile_ms(ascending_s: Sequence[float], share: float) -> float | None:
    """The value that this share of them does not exceed; None of nothing."""
    if not ascending_s:
        return None
    return round(ascending_s[int(share * (len(ascending_s) - 1))] * 1000, 1)
