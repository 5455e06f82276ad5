"""Deliveries that are pending: one event for one receiver each, written by the script that ended the job."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import orjson
from redis.asyncio import Redis

from millpond.queue.keys import Keys
from millpond.queue.scripts import Scripts, raising_unavailable
from millpond.webhooks.endpoints import new_secret
from millpond.webhooks.events import WebhookEvent

# Longer than a try can take, so that nobody else makes the same one meanwhile.
LEASE_S = 90.0
MAX_WHY_CHARS = 200


class Outcome(StrEnum):
    """How a try went. ``POSTPONED``: none was made. ``GONE``: the receiver wants no more, ever."""

    DELIVERED = "delivered"
    RETRY = "retry"
    POSTPONED = "postponed"
    DROPPED = "dropped"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Delivery:
    """``tries`` counts the one that is to be made now. ``data`` None: the event is a job's, and its data
    is the job's result.
    """

    name: str
    tries: int
    tenant: str
    event: str
    at_ms: int
    url: str
    secret: str = field(repr=False)
    data: dict[str, Any] | None

    @property
    def subject(self) -> str:
        """The id of the job, or of what else the event is about."""
        return self.name.partition("/")[2]


class Deliveries:
    """The deliveries of one queue. All methods raise QueueUnavailableError when Redis cannot serve."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._scripts = Scripts(redis, keys)

    async def announce(
        self,
        event: WebhookEvent,
        subject: str,
        data: Mapping[str, Any],
        *,
        tenant: str,
        at_ms: int,
        url: str | None = None,
    ) -> int:
        """Tell of something that is no job: ``url``, if any, and the tenant's endpoints.

        Safe to repeat with the same ``at_ms``: what is pending is not added twice, and what was delivered
        has the same ``webhook-id`` again. Returns how many deliveries of it are pending.
        """
        text = orjson.dumps(data)
        args = (subject, tenant, event, at_ms, url or "", text)
        return int(await self._scripts.run("announce", *args))

    async def take(self, most: int) -> list[Delivery]:
        """Deliveries that are due, the longest due first, each with a lease of `LEASE_S`.

        One that is not settled by then counts as a try that failed, and is due again.
        """
        lease_ms = round(LEASE_S * 1000)
        taken = await self._scripts.run("delivery_take", most, lease_ms, new_secret())
        return [
            Delivery(
                name.decode(),
                tries,
                tenant.decode(),
                event.decode(),
                int(at_ms),
                url.decode(),
                secret.decode(),
                orjson.loads(data) if data else None,
            )
            for name, tries, tenant, event, at_ms, url, secret, data in taken
        ]

    async def settle(
        self, delivery: Delivery, outcome: Outcome, *, delay_s: float = 0.0, why: str = ""
    ) -> bool:
        """How the try went; after ``delay_s`` it is due again, if at all. False: the lease was lost."""
        args = (delivery.name, delivery.tries, outcome, round(delay_s * 1000), why[:MAX_WHY_CHARS])
        return bool(await self._scripts.run("delivery_settle", *args))

    async def pending(self) -> int:
        with raising_unavailable():
            return int(await self._redis.zcard(self._keys["deliveries"]))

    async def due_in_s(self) -> float | None:
        """Until the next one is due, 0 if one is; None: nothing is pending."""
        with raising_unavailable():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.zrange(self._keys["deliveries"], 0, 0, withscores=True)
                pipe.time()
                first, (seconds, micros) = await pipe.execute()
        if not first:
            return None
        return max(0.0, float(first[0][1]) / 1000 - (int(seconds) + int(micros) / 1e6))
