"""Keeps the leases of held jobs alive while the engine works, whatever the engine does.

Runs on the event loop, never in the engine's thread: a step that takes long costs no lease.
"""

import asyncio
from collections.abc import Callable, Mapping

import structlog

from millpond.errors import QueueUnavailableError
from millpond.messages import JobStatus
from millpond.queue import JobQueue
from worker.held import HeldJob

log = structlog.get_logger("millpond.lease")


class LeaseKeeper:
    """Renews every ``heartbeat_s`` and marks the jobs that are to end, or that are not ours any more.

    ``held`` is the Worker's own table, by row; ``on_end`` is called with the rows newly marked.
    """

    def __init__(
        self,
        queue: JobQueue,
        held: Mapping[str, HeldJob],
        on_end: Callable[[list[str]], None],
        heartbeat_s: float,
    ) -> None:
        self._queue = queue
        self._held = held
        self._on_end = on_end
        self._heartbeat_s = heartbeat_s

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            try:
                await self.renew()
            except QueueUnavailableError as error:
                # The leases may end meanwhile; the fence keeps late writes harmless.
                log.warning("renew_failed", error=str(error), held=len(self._held))

    async def renew(self) -> None:
        """One round. Raises QueueUnavailableError."""
        held = list(self._held.values())
        if not held:
            return
        renewal = await self._queue.renew([(job.id, job.claimed.fence) for job in held])
        ended = []
        for job in held:
            if job.ended or job.lost:
                continue
            if job.id in renewal.lost:
                job.lost = True
            elif job.id in renewal.cancelled:
                job.end_as = JobStatus.CANCELLED
            elif job.id in renewal.expired:
                job.end_as = JobStatus.EXPIRED
            else:
                continue
            ended.append(job.row)
        if ended:
            log.info("rows_to_end", rows=ended)
            self._on_end(ended)
