"""The client of RQ's workers, which know no event loop."""

from redis import Redis
from redis.sentinel import Sentinel

from millpond.errors import InvalidRequestError
from millpond.queue.connection.address import FIELD, Address, Kind
from millpond.queue.connection.locating import ASK_TIMEOUT_S
from millpond.queue.connection.pool import CONNECT_TIMEOUT_S


def connect_blocking(url: str, *, timeout_s: float | None = None) -> Redis:
    """Opens no connection yet. Raises InvalidRequestError if the URL is none, or leads to a cluster,
    over whose slots RQ's keys would be spread. ``timeout_s``: of an answer.
    """
    address = Address.parse(url)
    times = {"socket_connect_timeout": CONNECT_TIMEOUT_S}
    if timeout_s is not None:
        times["socket_timeout"] = timeout_s
    match address.kind:
        case Kind.SERVER:
            return Redis.from_url(url, **times)
        case Kind.CLUSTER:
            raise InvalidRequestError(
                FIELD, "background work runs on one server or under Sentinel, not in a cluster"
            )
        case Kind.SENTINEL:
            options = {k: v for k, v in address.options.items() if k != "connection_class"}
            asking = {**address.node_options, "socket_timeout": ASK_TIMEOUT_S}
            sentinels = Sentinel(address.nodes, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
            client: Redis = sentinels.master_for(  # type: ignore[no-untyped-call]
                address.primary,
                ssl=address.node_options["ssl"],
                **{**times, **options},
            )
            return client
