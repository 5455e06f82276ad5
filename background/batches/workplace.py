"""What a slice of work on a batch has at hand, opened when it begins and closed when it ends."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from threading import Event

from redis.asyncio import Redis

from background.worker import Running
from millpond.batches.batches import LEASE_S, Batches
from millpond.batches.files import Files
from millpond.batches.flight import Place
from millpond.batches.records import Turn, TurnOverError
from millpond.batches.storage import Storage
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue
from millpond.queue.keys import Keys
from millpond.queue.results import Results
from millpond.queue.subscriptions import Subscriptions
from millpond.settings import Settings
from millpond.tasks import end_tasks
from millpond.webhooks.deliveries import Deliveries

RENEW_EVERY_S = LEASE_S / 3


@dataclass(frozen=True, slots=True)
class Workplace:
    """``stopping`` is set when the process is to end soon."""

    settings: Settings
    redis: Redis
    batches: Batches
    files: Files
    storage: Storage
    subscriptions: Subscriptions
    deliveries: Deliveries
    stopping: Event

    def place(self, queue: str) -> Place:
        return Place(
            JobQueue(self.redis, queue, self.settings.queue_options()),
            Results(self.redis, queue, self.subscriptions),
        )


@contextlib.asynccontextmanager
async def open_workplace(running: Running) -> AsyncIterator[Workplace]:
    settings = running.settings
    redis = connect(settings.redis_url, settings.queue)
    subscriptions = Subscriptions(redis)
    try:
        yield Workplace(
            settings,
            redis,
            Batches(redis, settings.queue),
            Files(redis, settings.queue),
            Storage(settings.files_place),
            subscriptions,
            Deliveries(redis, Keys(settings.queue)),
            running.stopping,
        )
    finally:
        await subscriptions.close()
        await redis.aclose()


@contextlib.asynccontextmanager
async def kept(batches: Batches, turn: Turn) -> AsyncIterator[Event]:
    """Renew the turn meanwhile. The event is set when it is over, so that a thread can give up, too."""
    over = Event()

    async def renew() -> None:
        while not over.is_set():
            await asyncio.sleep(RENEW_EVERY_S)
            try:
                await batches.renew(turn)
            except TurnOverError:
                over.set()

    task = asyncio.create_task(renew(), name="turn")
    try:
        yield over
    finally:
        over.set()
        await end_tasks(task)
