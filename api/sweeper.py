"""Sweeps the queues once a second, so that deadlines and retries work even if no worker is alive."""

import asyncio

import structlog

from millpond.errors import QueueUnavailableError
from millpond.queue.job_queue import SWEEP_LIMIT, JobQueue

SWEEP_EVERY_S = 1.0

log = structlog.get_logger("millpond.api")


async def sweep_forever(queue: JobQueue, every_s: float = SWEEP_EVERY_S) -> None:
    """Reap until cancelled. Each outage of Redis is logged once."""
    away = False
    while True:
        try:
            swept = await queue.reap()
        except QueueUnavailableError as error:
            if not away:
                log.warning("redis_away", cause=str(error))
            away = True
        else:
            if away:
                log.info("redis_back")
            away = False
            if any(swept):
                log.info("swept", **swept._asdict())
            if max(swept) >= SWEEP_LIMIT:  # there is more
                continue
        await asyncio.sleep(every_s)
