"""The connection: its own faults, and what may be shown of its URL."""

import re

import pytest
import redis.exceptions
from redis.asyncio import SSLConnection

from millpond.errors import InvalidRequestError
from millpond.queue.connection import (
    Address,
    Connections,
    connect,
    connect_blocking,
    without_password,
)
from millpond.queue.connection.address import Kind
from millpond.queue.connection.pool import TCPConnection, TLSConnection, UnixConnection


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:secret@host/0", "redis://:***@host/0"),
        ("rediss://api:se:cret@host:6380/0?a=b", "rediss://api:***@host:6380/0?a=b"),
        ("redis://api@host/0", "redis://api@host/0"),
        (
            "redis+sentinel://u:secret@a:1,b:2/pond/0?sentinel_password=secret&ssl_keyfile=k",
            "redis+sentinel://u:***@a:1,b:2/pond/0?sentinel_password=***&ssl_keyfile=k",
        ),
        ("redis://host/0?password=secret", "redis://host/0?password=***"),
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


def test_options_in_the_url_win() -> None:
    pool = connect("redis://host?max_connections=3&socket_timeout=2").connection_pool
    assert (pool.max_connections, pool.connection_kwargs["socket_timeout"]) == (3, 2.0)


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


def test_sentinels_and_what_they_watch() -> None:
    url = "rediss+sentinel://api:se%40cret@a:1,[::1]:2,c/pond/3?sentinel_password=other&ssl_cert_reqs=none"
    address = Address.parse(url)
    assert address.kind is Kind.SENTINEL
    assert address.nodes == (("a", 1), ("::1", 2), ("c", 26379))
    assert address.primary == "pond"
    assert address.options == {
        "username": "api",
        "password": "se@cret",
        "db": 3,
        "ssl_cert_reqs": "none",
        "connection_class": SSLConnection,
    }
    assert address.node_options == {"ssl": True, "password": "other", "ssl_cert_reqs": "none"}


def test_nodes_of_a_cluster_take_the_password_of_their_like() -> None:
    address = Address.parse("redis+cluster://:secret@a:1,b")
    assert address.kind is Kind.CLUSTER
    assert address.nodes == (("a", 1), ("b", 6379))
    assert address.options == {"password": "secret"}
    assert address.node_options == {"ssl": False, "password": "secret"}


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://host", "redis"),
        ("redis+magic://host", "redis[s]+cluster://"),
        ("unix+sentinel://host/pond", "redis[s]+sentinel://"),
        ("redis+sentinel://a:1,b:2", "names no primary"),
        ("redis+sentinel://a:1/pond/x", "no number of a database"),
        ("redis+sentinel://a:1/pond/0/1", "no number of a database"),
        ("redis+sentinel://a:port/pond", "a:port"),
        ("redis+sentinel://a:1,,b:2/pond", "HOST:PORT"),
        ("redis+cluster://a:1/2", "no database but 0"),
        ("redis+cluster://a:1?socket_timeout=soon", "socket_timeout"),
    ],
)
def test_a_url_that_says_nothing_is_refused_by_name(url: str, complaint: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(complaint)) as error:
        connect(url)
    assert error.value.field == "redis_url"


def test_queues_share_a_client_unless_they_may_lie_on_several_nodes() -> None:
    one, many = Connections("redis+sentinel://a/pond"), Connections("redis+cluster://a")
    assert one.to_queue("x") is one.to_queue("y") is one.to_directory()
    assert many.to_queue("x") is many.to_queue("x")
    assert len({many.to_queue("x"), many.to_queue("y"), many.to_directory()}) == 3


def test_rqs_workers_go_under_sentinel_and_not_into_a_cluster() -> None:
    pool = connect_blocking("redis+sentinel://u:secret@a:1/pond/2").connection_pool
    assert (pool.service_name, pool.connection_kwargs["db"]) == ("pond", 2)
    with pytest.raises(InvalidRequestError, match="not in a cluster"):
        connect_blocking("redis+cluster://a")
