"""Who is the server now? Asked whenever a connection is made, so that a new one leads to the new primary."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import ConnectionError, RedisError

from millpond.queue.connection.address import Node

# After this the next one is asked.
ASK_TIMEOUT_S = 1.0


class Locator(ABC):
    """Asks its nodes in turn, until one knows. ``options`` are redis-py's for a connection to them."""

    def __init__(self, nodes: Iterable[Node], options: Mapping[str, Any]) -> None:
        self._nodes = list(nodes)
        self._options = {
            **options,
            "socket_timeout": ASK_TIMEOUT_S,
            "socket_connect_timeout": ASK_TIMEOUT_S,
            "retry": Retry(NoBackoff(), 0),  # the next one is asked instead
        }

    async def locate(self) -> Node:
        """Raises ConnectionError if none of them knows."""
        for node in tuple(self._nodes):
            # Who has been asked comes last, so that one which is wrong is not believed twice in a row.
            self._nodes.remove(node)
            self._nodes.append(node)
            async with Redis(host=node[0], port=node[1], **self._options) as redis:
                try:
                    found = await self._ask(redis, node)
                except (RedisError, OSError):
                    continue
            if found is not None:
                return found
        raise ConnectionError(f"none of {_shown(self._nodes)} knows {self._wanted}")

    @property
    @abstractmethod
    def _wanted(self) -> str:
        """In words."""

    @abstractmethod
    async def _ask(self, redis: Redis, node: Node) -> Node | None: ...


class SentinelLocator(Locator):
    """Finds the primary that the sentinels know by this name."""

    def __init__(self, nodes: Iterable[Node], options: Mapping[str, Any], primary: str) -> None:
        super().__init__(nodes, options)
        self._primary = primary

    @property
    def _wanted(self) -> str:
        return f"a primary called {self._primary!r}"

    async def _ask(self, redis: Redis, node: Node) -> Node | None:
        found: Any = await redis.sentinel_get_master_addr_by_name(self._primary)
        return None if found is None else (_text(found[0]), int(found[1]))


class ClusterLocator(Locator):
    """Finds the primary of the slot in which this key lies, and learns which nodes there are."""

    def __init__(self, nodes: Iterable[Node], options: Mapping[str, Any], key: str) -> None:
        super().__init__(nodes, options)
        self._slot = key_slot(key.encode())

    @property
    def _wanted(self) -> str:
        return f"the primary of slot {self._slot}"

    async def _ask(self, redis: Redis, node: Node) -> Node | None:
        ranges: Any = await redis.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
        found = None
        for first, last, *servers in ranges:
            # A node that does not know its own address means the one at which it was asked.
            known = [(_text(server[0]) or node[0], int(server[1])) for server in servers]
            self._nodes += [server for server in known if server not in self._nodes]
            if first <= self._slot <= last:
                found = known[0]
        return found


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def _shown(nodes: Iterable[Node]) -> str:
    return ", ".join(f"{host}:{port}" for host, port in nodes)
