"""One pub/sub connection for a whole process, shared by everyone who listens.

Pub/sub is only a hint: messages are lost while the connection is down. After each reconnect every
listener gets `GAP` and reads the stored state again.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Final

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from millpond.queue.keys import IDLE_CHANNEL
from millpond.tasks import end_tasks, keep_running

GAP: Final = b""
RECONNECT_DELAY_S = 0.2
# A connection that has been silent for this long is pinged, and dropped if it does not answer.
SILENCE_S = 2.0
# A listener this far behind gets one GAP instead of its messages, so memory stays bounded.
MAX_BACKLOG = 1_000


class Subscriptions:
    """Gives each listener of a channel its own queue of messages."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._pubsub: PubSub | None = None
        self._listeners: dict[str, set[asyncio.Queue[bytes]]] = defaultdict(set)
        self._reader: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator[asyncio.Queue[bytes]]:
        """The channel's messages from now on, as bytes; `GAP` where some may be missing.

        The first item is always GAP: read the stored state before waiting for the next.
        """
        if self._reader is None:
            self._reader = asyncio.create_task(
                keep_running("subscriptions", self._read_until_broken, RECONNECT_DELAY_S),
                name="millpond-subscriptions",
            )
        inbox: asyncio.Queue[bytes] = asyncio.Queue()
        first = not self._listeners[channel]
        self._listeners[channel].add(inbox)
        try:
            if first and self._pubsub is not None:
                # On a broken connection the reader subscribes again and sends GAP by itself.
                with contextlib.suppress(RedisError, OSError):
                    await self._pubsub.subscribe(channel)
            inbox.put_nowait(GAP)
            yield inbox
        finally:
            self._listeners[channel].discard(inbox)
            if not self._listeners[channel]:
                del self._listeners[channel]
                if self._pubsub is not None:
                    with contextlib.suppress(RedisError, OSError):
                        await self._pubsub.unsubscribe(channel)

    async def close(self) -> None:
        reader, self._reader = self._reader, None
        await end_tasks(reader)

    async def _read_until_broken(self) -> None:
        """Read until the connection fails, which raises."""
        pubsub = self._redis.pubsub()
        try:
            # The connection has to be in pub/sub mode even without listeners.
            await pubsub.subscribe(IDLE_CHANNEL, *self._listeners)
            self._pubsub = pubsub
            # Listeners that were added while the connection was being made.
            if missed := [c for c in self._listeners if c.encode() not in pubsub.channels]:
                await pubsub.subscribe(*missed)
            for inboxes in self._listeners.values():
                for inbox in inboxes:
                    inbox.put_nowait(GAP)
            asked = False
            while True:
                message = await pubsub.get_message(timeout=SILENCE_S)
                if message is None:
                    if asked:
                        raise TimeoutError(f"no sign of life for {2 * SILENCE_S:g} s")
                    await pubsub.ping()
                asked = message is None
                if message is None or message["type"] not in ("message", "subscribe"):
                    continue
                # A confirmed subscription is a GAP too: earlier messages were missed.
                data = message["data"] if message["type"] == "message" else GAP
                for inbox in self._listeners.get(message["channel"].decode(), ()):
                    if inbox.qsize() < MAX_BACKLOG:
                        inbox.put_nowait(data)
                    elif inbox.qsize() == MAX_BACKLOG:
                        inbox.put_nowait(GAP)
        finally:
            self._pubsub = None
            with contextlib.suppress(RedisError, OSError):
                await pubsub.aclose()  # type: ignore[no-untyped-call]
