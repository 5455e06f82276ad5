"""The connection: its own faults, and what may be shown of its URL."""

import pytest
import redis.exceptions

from millpond.queue.connection import (
    TCPConnection,
    TLSConnection,
    UnixConnection,
    connect,
    without_password,
)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:secret@host/0", "redis://:***@host/0"),
        ("rediss://api:se:cret@host:6380/0?a=b", "rediss://api:***@host:6380/0?a=b"),
        ("redis://api@host/0", "redis://api@host/0"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


class ClosedByUvloop:
    """uvloop's transport after a reset: another error than asyncio's own."""

    def writelines(self, data: object) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport>; the handler is closed")

    def close(self) -> None:
        pass


async def test_a_transport_that_uvloop_closed_is_a_broken_connection() -> None:
    """A reset between two commands: the next write must count as a lost connection, to be made anew."""
    connection = TCPConnection()
    connection._reader = object()  # type: ignore[assignment]
    connection._writer = ClosedByUvloop()  # type: ignore[assignment]

    with pytest.raises(redis.exceptions.ConnectionError, match="handler is closed"):
        await connection.send_packed_command([b"PING"], check_health=False)

    assert not connection.is_connected


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://127.0.0.1:6379/0", TCPConnection),
        ("rediss://127.0.0.1:6379/0", TLSConnection),
        ("unix:///run/redis.sock", UnixConnection),
    ],
)
def test_every_kind_of_url_has_the_same_care(url: str, kind: type) -> None:
    assert connect(url).connection_pool.connection_class is kind
