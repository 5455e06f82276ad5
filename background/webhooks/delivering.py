"""Takes what is due of all queues, sends it, and writes down how it went.

A delivery is made at least once: a process that dies between the receiver's answer and that note leaves
it to be made again, under the same ``webhook-id``.
"""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from redis.asyncio import Redis

from background.webhooks.receivers import Receivers
from background.webhooks.retrying import retry_delay_s
from background.webhooks.sender import Sender, Try
from millpond.errors import QueueUnavailableError
from millpond.logs import outline
from millpond.queue.directory import QueueDirectory
from millpond.queue.keys import Keys
from millpond.queue.results import Results
from millpond.queue.subscriptions import Subscriptions
from millpond.tasks import end_tasks
from millpond.webhooks.deliveries import Deliveries, Delivery, Outcome
from millpond.webhooks.events import job_data, payload, webhook_id

MAX_AT_ONCE = 64
LOOK_EVERY_S = 0.25
LIST_QUEUES_EVERY_S = 5.0
AWAY_RETRY_S = 1.0
# Of a process that is to stop, with the tries that are under way.
STOP_PATIENCE_S = 3.0

log = structlog.get_logger("millpond.background")


@dataclass(frozen=True, slots=True)
class _Served:
    name: str
    deliveries: Deliveries
    results: Results


class Deliverer:
    """Sends what the home queue and those of all models owe, `MAX_AT_ONCE` tries at a time."""

    def __init__(self, redis: Redis, home: str, sender: Sender) -> None:
        self._redis = redis
        self._subscriptions = Subscriptions(redis)  # never used: results are read, not waited for
        self._directory = QueueDirectory(redis)
        self._sender = sender
        self._receivers = Receivers(time.monotonic)
        self._chance = random.Random()  # noqa: S311 (spreads retries)
        self._queues = {home: self._served(home)}
        self._listed_s = -LIST_QUEUES_EVERY_S
        self._tries: set[asyncio.Task[None]] = set()

    def _served(self, queue: str) -> _Served:
        deliveries = Deliveries(self._redis, Keys(queue))
        return _Served(queue, deliveries, Results(self._redis, queue, self._subscriptions))

    async def run(self, stopping: Callable[[], bool], slice_s: float) -> None:
        """For ``slice_s``, or until ``stopping`` says so; tries that are under way then may end."""
        end_s = time.monotonic() + slice_s
        away = False
        while not stopping() and time.monotonic() < end_s:
            pause_s = LOOK_EVERY_S
            try:
                if await self.begin_due() and len(self._tries) < MAX_AT_ONCE:
                    pause_s = 0.0
                away = False
            except QueueUnavailableError as error:
                if not away:
                    log.warning("redis_away", cause=str(error))
                away, pause_s = True, AWAY_RETRY_S
            await asyncio.sleep(pause_s)
        await self.finish(STOP_PATIENCE_S if stopping() else None)

    async def begin_due(self) -> int:
        """Begin tries of what is due, as many as there is room for; returns how many were taken."""
        await self._list_queues()
        begun = 0
        for served in self._queues.values():
            room = MAX_AT_ONCE - len(self._tries)
            if room <= 0:
                break
            for delivery in await served.deliveries.take(room):
                begun += 1
                wait_s = self._receivers.wait_s(delivery.url)
                if wait_s > 0:
                    await served.deliveries.settle(delivery, Outcome.POSTPONED, delay_s=wait_s)
                    continue
                self._receivers.begin(delivery.url)
                task = asyncio.create_task(self._try(served, delivery), name=delivery.name)
                self._tries.add(task)
                task.add_done_callback(self._tries.discard)
        return begun

    async def finish(self, timeout_s: float | None = None) -> None:
        """Wait for the tries that are under way. What is cut off is tried again when its lease ends."""
        if self._tries:
            _, late = await asyncio.wait(self._tries, timeout=timeout_s)
            await end_tasks(*late)

    async def _list_queues(self) -> None:
        now_s = time.monotonic()
        if now_s - self._listed_s >= LIST_QUEUES_EVERY_S:
            for queue in await self._directory.all():
                self._queues.setdefault(queue, self._served(queue))
            self._listed_s = now_s

    async def _try(self, served: _Served, delivery: Delivery) -> None:
        made = Try(Outcome.RETRY, "could not be made")
        try:
            made = await self._send(served, delivery)
        except Exception as error:
            log.error("webhook_try_broke", delivery=delivery.name, **outline(error))
        finally:
            self._receivers.end(delivery.url, answered=made.answered)
        try:
            await self._settle(served, delivery, made)
        except QueueUnavailableError:  # its lease ends, and it is tried again
            log.warning("webhook_not_settled", delivery=delivery.name)

    async def _send(self, served: _Served, delivery: Delivery) -> Try:
        data = delivery.data
        if data is None:
            results = await served.results.get_results([delivery.subject])
            data = job_data(delivery.subject, delivery.event, results.get(delivery.subject))
        id = webhook_id(served.name, delivery.event, delivery.subject, delivery.at_ms)
        body = payload(id, delivery.event, delivery.at_ms, data)
        return await self._sender.send(delivery.url, delivery.secret, id, body)

    async def _settle(self, served: _Served, delivery: Delivery, made: Try) -> None:
        outcome, delay_s = made.outcome, 0.0
        if outcome is Outcome.RETRY:
            delay = retry_delay_s(delivery.tries, self._chance)
            outcome, delay_s = (Outcome.DROPPED, 0.0) if delay is None else (outcome, delay)
        held = await served.deliveries.settle(delivery, outcome, delay_s=delay_s, why=made.why)
        said = {"delivery": delivery.name, "event_type": delivery.event, "tries": delivery.tries}
        if outcome is Outcome.DELIVERED:
            log.info("webhook_delivered", **said)
        else:
            log.warning(
                "webhook_failed", outcome=outcome, why=made.why, again_s=round(delay_s), **said
            )
        if not held:
            log.warning("webhook_lease_lost", delivery=delivery.name)
