"""One pub/sub connection for a whole process, shared by everyone who listens.

Pub/sub is only a hint: messages are lost while the connection is down. After each reconnect every
listener gets `GAP` and reads the stored state again.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
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
# In case a message was lost all the same: all listeners' keys are checked this often, so many by one
# command.
CHECK_EVERY_S = 5.0
KEYS_A_CHECK = 500


@dataclass(frozen=True, slots=True)
class Expectation:
    """What should hold while a channel is listened to: ``alive`` exists, and ``over`` does not."""

    alive: str
    over: str


class Subscriptions:
    """Gives each listener of a channel its own queue of messages.

    Nobody polls: one look at Redis serves all listeners of the process.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._pubsub: PubSub | None = None
        self._listeners: dict[str, set[asyncio.Queue[bytes]]] = defaultdict(set)
        self._expected: dict[str, Expectation] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @contextlib.asynccontextmanager
    async def listen(
        self, channel: str, expected: Expectation | None = None
    ) -> AsyncIterator[asyncio.Queue[bytes]]:
        """The channel's messages from now on, as bytes; `GAP` where some may be missing.

        The first item is always GAP: read the stored state before waiting for the next. Where something
        else is found than is ``expected``, which is of the channel, its listeners get a GAP too.
        """
        if not self._tasks:
            works = {"subscriptions": self._read_until_broken, "checks": self._check_until_broken}
            self._tasks = [
                asyncio.create_task(keep_running(name, work, RECONNECT_DELAY_S), name=name)
                for name, work in works.items()
            ]
        if expected is not None:
            self._expected[channel] = expected
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
                self._expected.pop(channel, None)
                if self._pubsub is not None:
                    with contextlib.suppress(RedisError, OSError):
                        await self._pubsub.unsubscribe(channel)

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        await end_tasks(*tasks)

    async def _check_until_broken(self) -> None:
        while True:
            await asyncio.sleep(CHECK_EVERY_S)
            by_queue = defaultdict(list)  # a command's keys have to lie in one slot of a cluster
            for channel in self._expected:
                by_queue[channel.partition("}")[0]].append(channel)
            for channels in by_queue.values():
                for i in range(0, len(channels), KEYS_A_CHECK):
                    await self._check(channels[i : i + KEYS_A_CHECK])

    async def _check(self, channels: Sequence[str]) -> None:
        """Send GAP where what is found is not what is expected, mostly nowhere."""
        held = {c: e for c in channels if (e := self._expected.get(c)) is not None}
        if not held or await self._as_expected(*held.values()):
            return
        for channel, expected in held.items():
            if not await self._as_expected(expected):
                for inbox in self._listeners.get(channel, ()):
                    inbox.put_nowait(GAP)

    async def _as_expected(self, *expected: Expectation) -> bool:
        alive = await self._redis.exists(*(each.alive for each in expected))
        return alive == len(expected) and not await self._redis.exists(*(e.over for e in expected))

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
