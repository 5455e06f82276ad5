"""Counts the open connections and knows which are idle: one owner for each process."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from millpond.settings import Settings


class Connection(Protocol):
    def drop(self) -> None:
        """Close it now; it has no active request."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection may send, how long it may take, and how many there may be."""

    header_bytes: int
    header_timeout_s: float
    min_body_bytes_per_s: int
    connections: int
    idle_connections: int

    @classmethod
    def of(cls, settings: Settings) -> "ConnectionLimits":
        return cls(
            header_bytes=settings.max_header_bytes,
            header_timeout_s=settings.header_timeout_s,
            min_body_bytes_per_s=settings.min_body_bytes_per_s,
            connections=settings.max_connections,
            idle_connections=settings.max_idle_connections,
        )


class Connections:
    """Keeps idle connections in the order in which they became idle, and drops the oldest above a limit.

    A connection without an active request is idle: a new one, one that is kept alive, or one whose headers
    are incomplete. So clients that hold connections open displace each other, not a client that sends its
    request at once.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._busy: set[Connection] = set()
        self._idle: OrderedDict[Connection, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._busy) + len(self._idle)

    @property
    def idle(self) -> int:
        return len(self._idle)

    def admit(self, connection: Connection) -> bool:
        """Add a new connection, idle at first. False: there are too many, and all are busy."""
        if len(self._busy) >= self.limits.connections:
            return False
        self._idle[connection] = None
        self._make_room()
        return True

    def begin(self, connection: Connection) -> None:
        """A request has arrived on it."""
        if connection in self._idle:
            del self._idle[connection]
            self._busy.add(connection)

    def end(self, connection: Connection) -> None:
        """Its last request has been answered."""
        if connection in self._busy:
            self._busy.remove(connection)
            self._idle[connection] = None
            self._make_room()

    def forget(self, connection: Connection) -> None:
        """It is closed; safe to repeat."""
        self._busy.discard(connection)
        self._idle.pop(connection, None)

    def _make_room(self) -> None:
        if len(self) > self.limits.connections or self.idle > self.limits.idle_connections:
            first, _ = self._idle.popitem(last=False)
            first.drop()
