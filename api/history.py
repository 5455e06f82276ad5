"""How fast a queue was, of late: what charts show."""

import time
from collections import deque
from dataclasses import dataclass

from millpond.queue.results import QueueState

EVERY_S = 2.0
KEPT_S = 600.0


@dataclass(frozen=True, slots=True)
class Moment:
    """The queue at one time. Rates are sums over the workers alive, ``None`` where none of them tells.

    Of the percentiles of several workers: the mean of the medians, by their jobs, and the worst 90th.
    """

    at_ms: int
    queued: int
    running: int
    jobs_per_s: float
    tokens_per_s: float
    wait_p50_ms: float | None
    wait_p90_ms: float | None
    latency_p50_ms: float | None
    latency_p90_ms: float | None

    @classmethod
    def of(cls, state: QueueState, at_ms: int) -> "Moment":
        workers = [w.state for w in state.workers if w.alive]
        told = [w for w in workers if w.latency_p50_ms is not None]
        weights = [max(w.jobs_per_s, 1e-3) for w in told]

        def mean(values: list[float | None]) -> float | None:
            pairs = [(v, w) for v, w in zip(values, weights, strict=True) if v is not None]
            if not pairs:
                return None
            return round(sum(v * w for v, w in pairs) / sum(w for _, w in pairs), 1)

        def worst(values: list[float | None]) -> float | None:
            return max((value for value in values if value is not None), default=None)

        return cls(
            at_ms=at_ms,
            queued=state.depth,
            running=state.running,
            jobs_per_s=round(state.jobs_per_s, 3),
            tokens_per_s=round(sum(w.tokens_per_s for w in workers), 1),
            wait_p50_ms=mean([w.wait_p50_ms for w in told]),
            wait_p90_ms=worst([w.wait_p90_ms for w in told]),
            latency_p50_ms=mean([w.latency_p50_ms for w in told]),
            latency_p90_ms=worst([w.latency_p90_ms for w in told]),
        )


class History:
    """The last ten minutes, since this process has been looking."""

    def __init__(self) -> None:
        self._moments: deque[Moment] = deque(maxlen=round(KEPT_S / EVERY_S))

    @property
    def moments(self) -> list[Moment]:
        return list(self._moments)

    def add(self, state: QueueState) -> None:
        self._moments.append(Moment.of(state, round(time.time() * 1000)))
