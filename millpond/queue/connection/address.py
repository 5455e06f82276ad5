"""What a ``redis_url`` says. Pure.

``redis://``, ``rediss://`` (TLS) and ``unix://`` name one server, in redis-py's own form. Two more kinds
name those who know where the server is:

``redis+sentinel://[user:password@]host:port,host:port/NAME/DB`` lists sentinels, and the name under which
they watch the primary; ``redis+cluster://[user:password@]host:port,host:port`` lists some nodes of a
cluster. ``rediss+...`` is the same over TLS.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio.connection import parse_url

from millpond.errors import InvalidRequestError

FIELD = "redis_url"
SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")

Node = tuple[str, int]


class Kind(StrEnum):
    SERVER = ""
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


DEFAULT_PORTS = {Kind.SENTINEL: 26379, Kind.CLUSTER: 6379}


@dataclass(frozen=True, slots=True)
class Address:
    """``options`` are redis-py's for a connection: user, password, database, TLS; for one server its
    address, too. ``nodes`` are the sentinels, or nodes of the cluster, and ``node_options`` are for a
    client that asks them; ``primary`` is the name by which the sentinels know it.
    """

    kind: Kind
    options: Mapping[str, Any]
    nodes: tuple[Node, ...] = ()
    primary: str = ""
    node_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Raises InvalidRequestError if this is no such URL."""
        scheme, colon, rest = url.partition("://")
        plain, _, word = scheme.partition("+")
        if not word:
            return cls(Kind.SERVER, _options(url))
        if word not in DEFAULT_PORTS or plain not in ("redis", "rediss"):
            raise InvalidRequestError(
                FIELD,
                f"{scheme}:// is none of redis[s]://, unix://, redis[s]+sentinel:// and "
                "redis[s]+cluster://",
            )
        kind = Kind(word)
        parts = urlsplit(f"{plain}{colon}{rest}")
        user, at, hosts = parts.netloc.rpartition("@")
        nodes = tuple(_node(host, DEFAULT_PORTS[kind]) for host in hosts.split(","))
        names = [unquote(name) for name in parts.path.split("/") if name]
        query = dict(parse_qsl(parts.query))
        of_sentinels = {name: query.pop(name) for name in SENTINEL_OPTIONS if name in query}
        primary = ""
        if kind is Kind.SENTINEL:
            if not names:
                raise InvalidRequestError(
                    FIELD, "names no primary; say redis+sentinel://HOST:PORT,HOST:PORT/NAME/DB"
                )
            primary = names.pop(0)
        if len(names) > 1 or not all(name.isdecimal() for name in names):
            raise InvalidRequestError(FIELD, f"{'/'.join(names)!r} is no number of a database")
        if kind is Kind.CLUSTER and names not in ([], ["0"]):
            raise InvalidRequestError(FIELD, "a cluster has no database but 0")
        database = "/".join(names)
        options = _options(f"{plain}://{user}{at}host:1/{database}?{urlencode(query)}")
        del options["host"], options["port"]
        asking = {
            name: value
            for name, value in options.items()
            if name.startswith("ssl_")
            or (kind is Kind.CLUSTER and name in ("username", "password"))
        }
        asking |= {name.removeprefix("sentinel_"): value for name, value in of_sentinels.items()}
        return cls(kind, options, nodes, primary, {"ssl": plain == "rediss", **asking})


def _options(url: str) -> dict[str, Any]:
    try:
        return dict(parse_url(url))
    except ValueError as error:
        raise InvalidRequestError(FIELD, str(error)) from error


def _node(text: str, default_port: int) -> Node:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidRequestError(FIELD, f"{text!r}: {error}") from error
    if not host:
        raise InvalidRequestError(FIELD, f"{text!r} is no HOST:PORT")
    return host, port or default_port


def without_password(url: str) -> str:
    """The URL without its passwords, for display."""
    url = re.sub(r"(?<=://)([^/@:]*):[^@]*@", r"\1:***@", url)
    return re.sub(r"((?:^|[?&_])password=)[^&]*", r"\1***", url)
