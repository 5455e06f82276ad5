"""What RQ runs: a slice of delivering, then the next one."""

import asyncio

from background.webhooks.delivering import Deliverer
from background.webhooks.sender import Sender
from background.worker import Running, running
from millpond.background_jobs import DELIVER_WEBHOOKS, WEBHOOK_SLICE_S
from millpond.queue.connection import connect
from millpond.webhooks.guard import Guard, SystemResolver


def deliver() -> None:
    """Deliver for `WEBHOOK_SLICE_S`, or until the process is to stop."""
    process = running()
    asyncio.run(_deliver(process))
    if not process.stopping.is_set() and process.queue(DELIVER_WEBHOOKS.kind).is_empty():
        process.enqueue(DELIVER_WEBHOOKS)


async def _deliver(process: Running) -> None:
    settings = process.settings
    redis = connect(settings.redis_url, settings.queue)
    resolver = SystemResolver()
    try:
        guard = Guard(resolver, settings.webhook_networks)
        async with Sender(guard, settings.webhook_timeout_s) as sender:
            deliverer = Deliverer(redis, settings.queue, sender)
            await deliverer.run(process.stopping.is_set, WEBHOOK_SLICE_S)
    finally:
        resolver.close()
        await redis.aclose()
