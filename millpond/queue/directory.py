"""The queues on a server and the model that each serves, as announced by the workers."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from redis.asyncio import Redis

from millpond.messages.fields import Stored
from millpond.queue.keys import QUEUES
from millpond.queue.scripts import raising_unavailable


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
        """Called by each worker when it joins. The entry remains when the workers are gone, as jobs do."""
        with raising_unavailable():
            await self._redis.hset(QUEUES, queue, about.to_json())

    async def all(self) -> Mapping[str, AnnouncedQueue]:
        """All entries by the queue's name, without those that this version cannot read."""
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
        """Remove the entry, until a worker announces it again. False: there was none."""
        with raising_unavailable():
            return bool(await self._redis.hdel(QUEUES, queue))
