"""Whether a Redis-protocol server is fit for a queue: its version, and its policy when memory runs out.

Workers, the API and `millpond up` check this when they start.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError

from millpond.errors import MillpondError
from millpond.queue.scripts import unavailable

LEAST_VERSION = (7, 0)

log = structlog.get_logger("millpond.local.server")


class UnsuitableServerError(MillpondError):
    """The server would lose accepted jobs, or is too old for the scripts."""

    code = "unsuitable_server"


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What ``INFO`` reports. ``version`` is the Redis version that the server is compatible with."""

    version: tuple[int, ...]
    eviction: str
    appends: bool

    @classmethod
    def from_info(cls, info: Mapping[str, Any]) -> "ServerFacts":
        """Missing fields count as good: not every kind of server reports all of them."""
        words = str(info.get("redis_version", "")).split(".")
        version = tuple(int(word) for word in words[:2] if word.isdecimal()) or LEAST_VERSION
        return cls(
            version=version,
            eviction=str(info.get("maxmemory_policy", "noeviction")),
            appends=bool(int(info.get("aof_enabled", 1))),
        )

    def refuse_unsuitable(self, *, allow_eviction: bool) -> None:
        """Raises UnsuitableServerError."""
        if self.version < LEAST_VERSION:
            raise UnsuitableServerError(
                f"the server is Redis {_dotted(self.version)} or compatible with it; Millpond needs "
                f"Redis {_dotted(LEAST_VERSION)}, Valkey 8, or newer"
            )
        if self.eviction != "noeviction" and not allow_eviction:
            raise UnsuitableServerError(
                f"the server's maxmemory-policy is {self.eviction}: when its memory is full it would "
                "drop accepted jobs, results and queues without a word. Set it to noeviction "
                "(CONFIG SET maxmemory-policy noeviction), or set allow_eviction=true to run all the "
                "same"
            )

    def warnings(self) -> list[str]:
        """Settings that may be intended, but that the operator should know of."""
        found = []
        if self.eviction != "noeviction":
            found.append(f"maxmemory-policy {self.eviction}: the server may drop accepted jobs")
        if not self.appends:
            found.append(
                "appendonly is off: accepted jobs since the last snapshot are lost when the server ends"
            )
        return found


async def check_server(redis: Redis, *, allow_eviction: bool) -> ServerFacts | None:
    """Look once, and log what should be known. None: the user of the connection may not look.

    Raises UnsuitableServerError, and QueueUnavailableError when the server cannot be asked.
    """
    try:
        info = await redis.info("all")
    except NoPermissionError:
        log.warning("server_not_checked", cause="the Redis user may not run INFO")
        return None
    except Exception as error:
        if (shown := unavailable(error)) is not None:
            raise shown from error
        if isinstance(error, RedisError):  # a server that has no INFO, or another one
            log.warning("server_not_checked", cause=type(error).__name__)
            return None
        raise
    facts = ServerFacts.from_info(info)
    facts.refuse_unsuitable(allow_eviction=allow_eviction)
    for warning in facts.warnings():
        log.warning("server", warning=warning)
    return facts


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
