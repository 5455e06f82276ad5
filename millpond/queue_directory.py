"""Which queues a server has, and which model each of them serves: what workers announce."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from redis.asyncio import Redis

from millpond.fields import Stored
from millpond.keys import QUEUES
from millpond.scripts import raising_unavailable


class AnnouncedQueue(Stored):
    """``model`` is the name under which jobs ask for it; the rest are its workers' settings.

    ``source`` is what `find_preset` finds it by, ``adapters`` are names.
    """

    model: str
    source: str
    engine: str
    adapters: tuple[str, ...] = ()
    remote_route: str = "completions"


class QueueDirectory:
    """All methods raise QueueUnavailableError when Redis cannot serve."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def announce(self, queue: str, about: AnnouncedQueue) -> None:
        """Said by each worker when it joins; it stays when the workers are gone, as jobs do."""
        with raising_unavailable():
            await self._redis.hset(QUEUES, queue, about.to_json())

    async def all(self) -> Mapping[str, AnnouncedQueue]:
        """By the queue's name. What this side cannot read is left out."""
        with raising_unavailable():
            found: Any = await self._redis.hgetall(QUEUES)
        queues = {}
        for name, value in sorted(found.items()):
            try:
                queues[name.decode()] = AnnouncedQueue.model_validate_json(value)
            except ValidationError:
                continue
        return queues

    async def forget(self, queue: str) -> bool:
        """Take it out of the list, until a worker announces it again. False: it was not there."""
        with raising_unavailable():
            return bool(await self._redis.hdel(QUEUES, queue))
