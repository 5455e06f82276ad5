"""Keeps the leases of jobs in flight alive while the engine works, whatever the engine does.

Runs on the event loop, never in the engine's thread: a step that takes long costs no lease.
"""

import asyncio

import structlog

from millpond.errors import QueueUnavailableError
from millpond.queue import JobQueue
from worker.job_state import JobState
from worker.job_table import JobTable

log = structlog.get_logger("millpond.lease")


class LeaseKeeper:
    """Renews every ``heartbeat_s``, and tells the table which jobs are to end, or are not ours any more."""

    def __init__(self, queue: JobQueue, jobs: JobTable, heartbeat_s: float) -> None:
        self._queue = queue
        self._jobs = jobs
        self._heartbeat_s = heartbeat_s

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            try:
                await self.renew()
            except QueueUnavailableError as error:
                # The leases may end meanwhile; the fence keeps late writes harmless.
                log.warning("renew_failed", error=str(error), held=len(self._jobs.in_flight))

    async def renew(self) -> None:
        """One round. Raises QueueUnavailableError."""
        jobs = self._jobs.in_flight
        if not jobs:
            return
        renewal = await self._queue.renew([(job.id, job.claimed.fence) for job in jobs])
        ended = []
        for job in jobs:
            if job.id in renewal.lost:
                state = JobState.LOST
            elif job.id in renewal.cancelled:
                state = JobState.CANCELLING
            elif job.id in renewal.expired:
                state = JobState.EXPIRING
            else:
                continue
            if self._jobs.stop(job, state):
                ended.append(job.row)
        if ended:
            log.info("rows_to_end", rows=ended)
