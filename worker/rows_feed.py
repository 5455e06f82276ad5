"""Publishes the batch as it runs, while somebody watches it."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from millpond.errors import QueueUnavailableError
from millpond.messages.worker_rows import RowNow, WorkerRows
from millpond.queue.watching import QueueWatch
from worker.jobs.in_flight import InFlightJob
from worker.jobs.job_state import RowState

EVERY_S = 0.2
# Of a larger batch, the first.
MAX_ROWS = 512


class RowsFeed:
    """Run `run` as a task. It does nothing until a heartbeat says that somebody watches."""

    def __init__(
        self, watch: QueueWatch, now: Callable[[], WorkerRows], every_s: float = EVERY_S
    ) -> None:
        self._watch = watch
        self._now = now
        self._every_s = every_s
        self._watched = asyncio.Event()

    def told(self, *, watched: bool) -> None:
        """What the heartbeat's answer says."""
        if watched:
            self._watched.set()
        else:
            self._watched.clear()

    async def run(self) -> None:
        while True:
            await self._watched.wait()
            with contextlib.suppress(QueueUnavailableError):
                await self._watch.publish(self._now())
            await asyncio.sleep(self._every_s)


def rows_of(jobs: Iterable[InFlightJob]) -> list[RowNow]:
    """The rows that the engine has, in the order of their claims."""
    rows = [
        RowNow(job=job.id, index=row.index, tokens=row.num_tokens, max_tokens=job.prompt.max_tokens)
        for job in jobs
        for row in job.rows
        if row.state is RowState.RUNNING
    ]
    return rows[:MAX_ROWS]
