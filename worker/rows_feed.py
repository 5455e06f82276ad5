"""Publishes the batch as it runs, while somebody watches it."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Sequence

from millpond.errors import QueueUnavailableError
from millpond.messages import JobResult
from millpond.messages.worker_rows import EndedRow, RowNow, WorkerRows
from millpond.queue.claims import Commit
from millpond.queue.watching import QueueWatch
from worker.jobs.in_flight import InFlightJob
from worker.jobs.job_state import RowState

EVERY_S = 0.2
# Of a larger batch, the first.
MAX_ROWS = 512
# Of more jobs that end between two messages, the first.
MAX_ENDED = 64


class RowsFeed:
    """Run `run` as a task. It does nothing until a heartbeat says that somebody watches.

    It is a `JobObserver`, to know of the rows that end between two messages.
    """

    def __init__(
        self,
        watch: QueueWatch,
        now: Callable[[list[EndedRow]], WorkerRows],
        every_s: float = EVERY_S,
    ) -> None:
        self._watch = watch
        self._now = now
        self._every_s = every_s
        self._watched = asyncio.Event()
        self._ended: list[InFlightJob] = []

    def told(self, *, watched: bool) -> None:
        """What the heartbeat's answer says."""
        if watched:
            self._watched.set()
        else:
            self._watched.clear()
            self._ended.clear()

    def claimed(self, jobs: Sequence[InFlightJob]) -> None: ...

    def prepared(self, job: InFlightJob) -> None: ...

    def settled(self, job: InFlightJob, result: JobResult, commit: Commit) -> None:
        if self._watched.is_set() and len(self._ended) < MAX_ENDED:
            self._ended.append(job)

    def given_back(self, job: InFlightJob) -> None: ...

    async def run(self) -> None:
        while True:
            await self._watched.wait()
            with contextlib.suppress(QueueUnavailableError):
                ended, self._ended = self._ended, []
                await self._watch.publish(self._now(ended_rows(ended, time.monotonic())))
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


def ended_rows(jobs: Iterable[InFlightJob], now_s: float) -> list[EndedRow]:
    """The rows of jobs that have ended; none of those that never had a slot. Times are the whole job's."""
    return [
        EndedRow(
            job=job.id,
            index=row.index,
            tokens=row.num_tokens,
            ran_ms=_ms(job.ended_s - job.admitted_s),
            first_token_ms=None
            if job.first_token_s is None
            else _ms(job.first_token_s - job.admitted_s),
            ended_ms_ago=_ms(now_s - job.ended_s),
        )
        for job in jobs
        if job.admitted_s is not None and job.ended_s is not None
        for row in job.rows
    ]


def _ms(seconds: float) -> int:
    return round(1000 * max(0.0, seconds))
