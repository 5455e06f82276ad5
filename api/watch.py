"""Checks whether this process may use the server and the queue, and stops it if not."""

import asyncio
import signal

import structlog
from redis.asyncio import Redis

from millpond.errors import MillpondError, QueueUnavailableError
from millpond.queue.connection import connect
from millpond.queue.membership import Membership, check_queue
from millpond.settings import Settings

START_PATIENCE_S = 3.0
WATCH_EVERY_S = 10.0

log = structlog.get_logger("millpond.api")


async def look_before_start(settings: Settings) -> None:
    """Raises UnsuitableServerError and QueueVersionError. A server that is away is checked later."""
    redis = connect(settings.redis_url, settings.queue)
    try:
        async with asyncio.timeout(START_PATIENCE_S):
            await check_queue(redis, settings.queue, allow_eviction=settings.allow_eviction)
    except (QueueUnavailableError, TimeoutError):
        log.warning("redis_away_at_start")
    finally:
        await redis.aclose()


async def watch_queue(redis: Redis, settings: Settings, every_s: float = WATCH_EVERY_S) -> None:
    """Watch until cancelled, or until the queue has another version: then stop the process."""
    looked = False
    while True:
        try:
            if looked:
                await Membership(redis, settings.queue).still_agrees()
            else:
                await check_queue(redis, settings.queue, allow_eviction=settings.allow_eviction)
                looked = True
        except QueueUnavailableError:
            pass
        except MillpondError as error:
            log.error("stopping", cause=str(error))
            signal.raise_signal(signal.SIGTERM)
            return
        await asyncio.sleep(every_s)
