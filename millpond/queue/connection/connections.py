"""The connections of one process, by the queue that they are for."""

from redis.asyncio import Redis

from millpond.queue.connection.address import Address, Kind
from millpond.queue.connection.locating import ClusterLocator, Locator, SentinelLocator
from millpond.queue.connection.pool import pooled
from millpond.queue.keys import QUEUES, Keys


class Connections:
    """One client serves all queues; in a cluster, where each queue lies in a slot of its own, one each.

    Opens no connection yet. Raises InvalidRequestError if the URL is none.
    """

    def __init__(self, url: str) -> None:
        self._address = Address.parse(url)
        self._clients: dict[str, Redis] = {}

    def to_queue(self, queue: str) -> Redis:
        """For this queue's keys, and its channels."""
        return self._to(Keys(queue).counts)

    def to_directory(self) -> Redis:
        """For the list of the queues, which belongs to none of them."""
        return self._to(QUEUES)

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    def _to(self, key: str) -> Redis:
        name = key if self._address.kind is Kind.CLUSTER else ""
        if name not in self._clients:
            self._clients[name] = pooled(self._address.options, self._locator(key))
        return self._clients[name]

    def _locator(self, key: str) -> Locator | None:
        address = self._address
        match address.kind:
            case Kind.SENTINEL:
                return SentinelLocator(address.nodes, address.node_options, address.primary)
            case Kind.CLUSTER:
                return ClusterLocator(address.nodes, address.node_options, key)
            case Kind.SERVER:
                return None


def connect(url: str, queue: str = "default") -> Redis:
    """The client of a process that needs one queue only. See `Connections`."""
    return Connections(url).to_queue(queue)
