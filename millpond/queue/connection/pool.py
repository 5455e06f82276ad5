"""The connections to one server, and what makes them look for another."""

from collections.abc import Mapping
from typing import Any

import hiredis
from redis.asyncio import BlockingConnectionPool, Connection, Redis
from redis.asyncio.connection import (
    AbstractConnection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    ConnectionError,
    MasterDownError,
    MovedError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
)

from millpond.queue.connection.locating import Locator

# Longer than any blocking call (MAX_BLOCK_S), short enough to notice a server that hangs.
SOCKET_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 3.0
MAX_BLOCK_S = 5.0
MAX_CONNECTIONS = 16
RETRIES = 2


# Errors of a server that is no longer the right one: it was demoted, has given the slot away, or is
# starting. redis-py has classes for some; within a script's error, and for the others, there is only
# the text.
ROLE_CHANGED = (ReadOnlyError, MasterDownError, MovedError)
ROLE_CHANGED_CODES = ("READONLY", "UNBLOCKED", "MASTERDOWN", "LOADING")


class QueueConnection(AbstractConnection):
    """What all kinds of connections have in common."""

    pool: "QueuePool"
    generation: int

    def pack_command(self, *args: Any) -> list[bytes]:
        """Encodes with hiredis, as redis-py's blocking client does: ten times faster for scripts."""
        name = args[0]
        if isinstance(name, str) and " " in name:  # redis-py's way to say CONFIG GET
            args = (*name.split(), *args[1:])
        return [hiredis.pack_command(args)]

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        """uvloop raises RuntimeError on a closed transport, which redis-py would not retry."""
        try:
            await super().send_packed_command(*args, **kwargs)
        except RuntimeError as error:
            raise ConnectionError(f"the connection is gone: {error}") from error

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """A server that changed its role counts as a lost connection: the command is retried on a new
        one, for which the server's name is resolved again."""
        try:
            return await super().read_response(*args, **kwargs)
        except (ConnectionError, TimeoutError):
            if self.pool.locator is not None:
                self.pool.renew(self)
            raise
        except ResponseError as error:
            text = str(error)
            if not isinstance(error, ROLE_CHANGED) and not any(
                code in text for code in ROLE_CHANGED_CODES
            ):
                raise
            self.pool.renew(self)
            await self.disconnect(nowait=True)
            raise ConnectionError(text) from error


class LocatedConnection(QueueConnection, Connection):
    """One to a host, which may be another each time."""

    async def _connect(self) -> None:
        if self.pool.locator is not None:
            self.host, self.port = await self.pool.locator.locate()
        await super()._connect()  # type: ignore[no-untyped-call]


class TCPConnection(LocatedConnection):
    pass


class TLSConnection(LocatedConnection, SSLConnection):
    pass


class UnixConnection(QueueConnection, UnixDomainSocketConnection):
    pass


KINDS: dict[type, type[QueueConnection]] = {
    Connection: TCPConnection,
    SSLConnection: TLSConnection,
    UnixDomainSocketConnection: UnixConnection,
}


class QueuePool(BlockingConnectionPool):
    """Also replaces its idle connections once one of them finds that its server has changed its role.

    They lead to the same server, which would still answer reads, with stale data. Where a ``locator``
    says who the server is, a connection that breaks means the same: another may have taken its place.
    """

    def __init__(self, locator: Locator | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.connection_class = KINDS[self.connection_class]
        self.locator = locator
        self.generation = 0

    def make_connection(self) -> QueueConnection:
        connection = super().make_connection()  # type: ignore[no-untyped-call]
        assert isinstance(connection, QueueConnection)
        connection.pool, connection.generation = self, self.generation
        return connection

    def renew(self, connection: QueueConnection) -> None:
        """Replace ``connection``, and all that are as old."""
        if connection.generation == self.generation:
            self.generation += 1
        connection.generation = self.generation

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        assert isinstance(connection, QueueConnection)
        if connection.generation != self.generation:
            await connection.disconnect(nowait=True)
            connection.generation = self.generation
        await super().ensure_connection(connection)


def pooled(options: Mapping[str, Any], locator: Locator | None) -> Redis:
    """A client that retries commands on a broken connection: every script is safe to repeat.

    Opens no connection yet. Beyond `MAX_CONNECTIONS`, callers wait for a free one. ``options`` are
    redis-py's, and win over ours; with a ``locator``, each new connection goes to where that says.
    """
    ours = {
        "max_connections": MAX_CONNECTIONS,
        "timeout": SOCKET_TIMEOUT_S,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "retry": Retry(
            ExponentialBackoff(cap=0.5, base=0.05), RETRIES, supported_errors=(ConnectionError,)
        ),
    }
    # Which closes the pool with the client.
    return Redis.from_pool(QueuePool(locator, **{**ours, **options}))
