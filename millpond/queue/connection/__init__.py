"""How every process reaches Redis: one server, the primary that Sentinel names, or a cluster."""

from millpond.queue.connection.address import Address, without_password
from millpond.queue.connection.blocking import connect_blocking
from millpond.queue.connection.connections import Connections, connect
from millpond.queue.connection.pool import MAX_BLOCK_S, MAX_CONNECTIONS

__all__ = [
    "MAX_BLOCK_S",
    "MAX_CONNECTIONS",
    "Address",
    "Connections",
    "connect",
    "connect_blocking",
    "without_password",
]
