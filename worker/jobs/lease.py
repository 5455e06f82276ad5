"""Keeps the leases of jobs in flight alive while the engine works, whatever the engine does.

Runs on the event loop, never in the engine's thread: a step that takes long costs no lease.
"""

import asyncio

import structlog

from millpond.errors import QueueUnavailableError
from millpond.queue.claims import Lease
from millpond.queue.job_queue import JobQueue
from worker.jobs.job_state import JobState
from worker.jobs.job_table import JobTable

log = structlog.get_logger("millpond.lease")

# How a job goes on whose lease is not simply held.
STOPS = {
    Lease.CANCELLED: JobState.CANCELLING,
    Lease.EXPIRED: JobState.EXPIRING,
    Lease.LOST: JobState.LOST,
}


class LeaseKeeper:
    """Renews every ``heartbeat_s``, and tells the table which jobs are to end or have been lost."""

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
        leases = await self._queue.renew([(job.id, job.claimed.fence) for job in jobs])
        ended = [
            job.row
            for job, lease in zip(jobs, leases, strict=True)
            if lease in STOPS and self._jobs.stop(job, STOPS[lease])
        ]
        if ended:
            log.info("rows_to_end", rows=ended)
