"""A recent snapshot of the queue, shared by all requests that need one."""

import asyncio
import math

from millpond.errors import QueueFullError
from millpond.queue.results import QueueState, Results

MAX_AGE_S = 1.0
# For clients of a full queue whose drain rate is unknown.
UNKNOWN_PACE_RETRY_S = 30
MAX_RETRY_S = 600
# A refused client should find some room when it retries, not just one place.
ROOM_SHARE = 0.05


class QueueMonitor:
    """Reads Redis at most once in ``max_age_s``, however many requests need it."""

    def __init__(self, results: Results, max_age_s: float = MAX_AGE_S) -> None:
        self._results = results
        self._max_age_s = max_age_s
        self._looked_s = -math.inf
        self._state: QueueState | None = None
        self._lock = asyncio.Lock()

    async def state(self, *, max_age_s: float | None = None) -> QueueState:
        """``max_age_s`` for those who need it fresher. Raises QueueUnavailableError."""
        max_age_s = self._max_age_s if max_age_s is None else max_age_s
        async with self._lock:
            now_s = asyncio.get_running_loop().time()
            if self._state is None or now_s - self._looked_s > max_age_s:
                self._state = await self._results.queue_state()
                self._looked_s = now_s
            return self._state

    async def with_retry_after(self, error: QueueFullError) -> QueueFullError:
        """The same error, with an estimate of when there will be room."""
        jobs_per_s = (await self.state()).jobs_per_s
        return type(error)(error.depth, error.limit, retry_after_s(error.limit, jobs_per_s))


def retry_after_s(max_depth: int, jobs_per_s: float) -> int:
    """Whole seconds until a share of the queue's places will be free, at the current rate."""
    if jobs_per_s <= 0:
        return UNKNOWN_PACE_RETRY_S
    return max(1, min(MAX_RETRY_S, math.ceil(max_depth * ROOM_SHARE / jobs_per_s)))
