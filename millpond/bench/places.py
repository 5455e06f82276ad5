"""The servers that are measured: those that run already, and stacks that are started for it."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from millpond.bench.records import Target
from millpond.bench.timed import BenchError
from millpond.local.stack_events import Say
from millpond.local.temporary_stack import temporary_stack
from millpond.settings import Settings

if TYPE_CHECKING:
    from millpond.bench.client import BenchClient

FOLDER_PREFIX = "millpond-bench-"
_WORKER_FACTS = ("engine", "backend", "dtype", "device", "slots", "workers", "context_tokens")


@dataclass(slots=True)
class Open:
    """A place that can be measured now. ``slots`` are those of all workers, if it tells."""

    client: "BenchClient"
    target: Target
    slots: int | None = None
    worker_pid: int | None = None


class Place(Protocol):
    @property
    def name(self) -> str: ...

    def opened(self) -> contextlib.AbstractAsyncContextManager[Open]:
        """Raises BenchError, StackError."""


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs already, by the base URL of its routes. ``api_key`` is None if it asks for none."""

    name: str
    url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    stream: bool = True

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Open]:
        async with _client(self.url, self.model, self.api_key, stream=self.stream) as client:
            yield await _look(client, self.name, self.url, {})


@dataclass(frozen=True, slots=True)
class OwnStack:
    """Server, worker and API on this machine, started anew each time with these settings."""

    name: str
    settings: Settings
    varied: dict[str, str]
    say: Say
    stream: bool = True

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Open]:
        # Its own server, and a port that nobody has; nobody else can reach it, so no keys either.
        own = {"port": 0, "host": "127.0.0.1", "auth": "off"}
        settings = self.settings.model_copy(update=own)
        async with (
            temporary_stack(settings, prefix=FOLDER_PREFIX, api=True, say=self.say) as stack,
            _client(f"{stack.api_url}/v1", None, None, stream=self.stream) as client,
        ):
            found = await _look(client, self.name, None, self.varied)
            found.worker_pid = stack.children["worker"].pid
            yield found


def _client(
    url: str, model: str | None, api_key: str | None, *, stream: bool
) -> contextlib.AbstractAsyncContextManager["BenchClient"]:
    """Its package is optional, and no other command loads it. Raises BenchError without it."""
    try:
        from millpond.bench.client import bench_client
    except ModuleNotFoundError as error:
        raise BenchError(f"{error.name} is missing; install millpond[bench]") from error
    return bench_client(url, model, api_key, stream=stream)


async def _look(
    client: "BenchClient", name: str, url: str | None, settings: dict[str, str]
) -> Open:
    entry: dict[str, Any] = await client.served()
    facts = {name: entry[name] for name in _WORKER_FACTS if name in entry}
    target = Target(name=name, url=url, settings=settings, model=client.model, worker=facts)
    slots = facts.get("slots")
    return Open(client, target, None if slots is None else slots * facts.get("workers", 1))
