"""Reads all queues of a server once a second, and listens for jobs that end."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from millpond.errors import QueueUnavailableError
from millpond.queue.connection import Connections
from millpond.queue.directory import QueueDirectory
from millpond.queue.keys import Keys
from millpond.queue.results import QueueState, Results
from millpond.queue.subscriptions import Subscriptions
from millpond.top.history import Ending, History

# Results that are read for one look: the view shows fewer, and percentiles need no more.
READ_A_LOOK = 100
LISTEN_S = 0.2
AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Shown:
    """What one look saw. ``trouble`` is why the rest is of an earlier one."""

    now_s: float
    queues: Mapping[str, QueueState] = field(default_factory=dict)
    trouble: str | None = None


class Gathering:
    """``history`` grows by what is seen. Run `listen` as a task."""

    def __init__(self, connections: Connections, home: str) -> None:
        self._connections = connections
        self._redis = connections.to_queue(home)  # where the events of all queues are heard
        self._directory = QueueDirectory(connections.to_directory())
        self._results = {home: self._of(home)}
        self._ended: dict[str, list[tuple[str, float]]] = {}  # ids, and when that was heard
        self._shown = Shown(time.monotonic())
        self.history = History()

    def _of(self, queue: str) -> Results:
        redis = self._connections.to_queue(queue)
        return Results(redis, queue, Subscriptions(redis))

    async def look(self) -> Shown:
        """Never raises for a server that is away."""
        now_s = time.monotonic()
        try:
            for name in await self._directory.all():
                self._results.setdefault(name, self._of(name))
            states = {name: await queue.queue_state() for name, queue in self._results.items()}
            await self._read_endings()
        except QueueUnavailableError as error:
            return Shown(now_s, self._shown.queues, str(error))
        self.history.ended(now_s, sum(sum(state.done.values()) for state in states.values()))
        self._shown = Shown(now_s, states)
        return self._shown

    async def _read_endings(self) -> None:
        heard, self._ended = self._ended, {}
        for queue, ended in heard.items():
            results = await self._results[queue].get_results([id for id, _ in ended])
            self.history.endings.extend(
                Ending.of(queue, results[id], at_s) for id, at_s in ended if id in results
            )

    async def listen(self) -> None:
        """Until cancelled. A server that is away is tried again."""
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await self._follow(pubsub)
            except (RedisError, OSError):
                await asyncio.sleep(AGAIN_S)

    async def _follow(self, pubsub: PubSub) -> None:
        queues: dict[bytes, str] = {}
        while True:
            for name in self._results.keys() - set(queues.values()):
                channel = Keys(name).channel
                await pubsub.subscribe(channel)
                queues[channel.encode()] = name
            message = await pubsub.get_message(timeout=LISTEN_S)
            if message is None or message["type"] != "message":
                continue
            event = orjson.loads(message["data"])
            if event["type"] == "finished":
                ended = self._ended.setdefault(queues[message["channel"]], [])
                ended.append((event["id"], time.monotonic()))
                del ended[:-READ_A_LOOK]
