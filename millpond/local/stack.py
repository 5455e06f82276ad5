"""The embedded stack: server, worker, API and background worker as real processes, watched, stopped in order.

Everything binds to loopback unless told otherwise. The stack writes ``stack.json`` into its data
folder, where the commands look for it.
"""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from millpond.errors import QueueUnavailableError
from millpond.local.child import Child
from millpond.local.server import PRIVATE_UMASK, ServerOptions, find_server, free_port, is_free
from millpond.local.services import service_argv, service_environment
from millpond.local.stack_events import Say, StackError, StackEvent
from millpond.local.stack_file import StackFile
from millpond.local.stack_watch import StackWatch, watching
from millpond.local.worker_pool import WorkerPool
from millpond.messages.worker_state import WorkerState
from millpond.queue.connection import connect
from millpond.queue.connection.address import Address, Kind
from millpond.queue.membership import check_queue
from millpond.settings import Settings

REDIS_PORT = 6390  # not Redis' default, where the user may run a server
POLL_S = 0.05
LOCK_FILE = "stack.lock"
STOP_SLACK_S = 8.0
# For a server that the user gave. If it does not answer in time, the children check it.
CHECK_TIMEOUT_S = 1.0


@dataclass(slots=True)
class Stack:
    """What is running. ``children`` are in the order of starting; they stop in reverse.

    ``workers`` are the settings of the workers, by the names of their processes.
    """

    settings: Settings
    workers: dict[str, Settings]
    say: Say
    children: dict[str, Child] = field(default_factory=dict)
    watch: StackWatch | None = None

    @property
    def redis_url(self) -> str:
        return self.settings.redis_url

    @property
    def api_url(self) -> str:
        return self.settings.api_url

    async def start(
        self, name: str, argv: list[str], *, stop_s: float, umask: int | None = None
    ) -> None:
        log = self.settings.data_dir.resolve() / f"{name}.log"
        own = self.workers.get(name, self.settings)
        environment = own.environment() | service_environment()
        child = Child(name, argv, environment, stop_s=stop_s, say=self.say, log=log, umask=umask)
        self.children[name] = child
        await child.start()

    async def wait_ready(self, timeout_s: float) -> WorkerState:
        """Until its workers are ready, and the API if it is part of this stack; the first worker.

        Raises StackError.
        """
        assert self.watch is not None
        try:
            async with asyncio.timeout(timeout_s):
                while not self.watch.ready or self.workers.keys() != self.watch.workers.keys():
                    self._check_deaths()
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            raise StackError(
                f"not ready after {timeout_s:g} s; see the logs in {self.settings.data_dir}"
            ) from error
        return self.watch.workers[next(iter(self.workers))].state

    def _check_deaths(self) -> None:
        for child in self.children.values():
            if (reason := child.hopeless) is not None:
                raise StackError(f"the {reason}")

    async def start_server(self, append_fsync: str) -> None:
        port = int(self.redis_url.rpartition(":")[2].partition("/")[0])
        options = ServerOptions(self.settings.data_dir.resolve() / "redis", port, append_fsync)
        options.make_folder()
        argv = [str(find_server()), *options.arguments()]
        await self.start("redis", argv, stop_s=STOP_SLACK_S, umask=PRIVATE_UMASK)

    async def stop_server(self) -> None:
        if (server := self.children.get("redis")) is not None:
            await server.stop()

    async def stop_services(self) -> None:
        assert self.watch is not None
        self.watch.stop_begins()
        for child in self._services():
            await child.stop()

    def _services(self) -> list[Child]:
        """Those that run, in the order in which they stop."""
        return [
            self.children[name]
            for name in ("api", "background", *self.workers)
            if name in self.children
        ]

    def file(self, *, api: bool) -> StackFile:
        """What stack.json says about it."""
        return StackFile(
            pid=os.getpid(),
            redis_url=self.redis_url,
            queue=self.settings.queue,
            api_url=self.api_url if api else None,
            serves=self.settings.serves(),
        )

    def hurry(self) -> None:
        """Wait for no row and no open connection any more, while stopping or when that begins."""
        for child in self._services():
            child.hurry()


@contextlib.asynccontextmanager
async def running_stack(
    settings: Settings,
    *,
    embedded_server: bool,
    api: bool,
    say: Say,
    append_fsync: str = "everysec",
    pool: WorkerPool | None = None,
) -> AsyncIterator[Stack]:
    """Start the stack, hand it over, stop it in order: API, workers, server.

    Without a ``pool`` there is one worker, for the model of the settings.
    Children log into ``data_dir``. Raises StackError when another stack holds the data folder or the
    port that was asked for is taken, and UnsuitableServerError or QueueVersionError for a server of
    the user's that will not do.
    """
    data_dir = settings.data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as ending:
        ending.enter_context(_locked(data_dir))
        own = _own_ports(settings, say, embedded_server=embedded_server, api=api)
        stack = Stack(own, (pool or WorkerPool()).settings(own), say)
        if embedded_server:
            ending.push_async_callback(stack.stop_server)
            await stack.start_server(append_fsync)
        else:
            await _check_given_server(settings)
        stack.watch = await ending.enter_async_context(
            watching(
                StackWatch(
                    stack.settings,
                    stack.children,
                    say,
                    {name: worker.queue for name, worker in stack.workers.items()},
                )
            )
        )
        ending.push_async_callback(stack.stop_services)
        stop_s = settings.grace_s + STOP_SLACK_S
        for name in stack.workers:
            await stack.start(name, service_argv("worker"), stop_s=stop_s)
        if api:
            await stack.start("api", service_argv("api"), stop_s=STOP_SLACK_S)
            if (
                Address.parse(stack.redis_url).kind is not Kind.CLUSTER
            ):  # RQ's keys have no hash tag
                await stack.start("background", service_argv("background"), stop_s=STOP_SLACK_S)
        stack.file(api=api).write(data_dir)
        ending.callback(StackFile.remove, data_dir)
        yield stack


def _own_ports(settings: Settings, say: Say, *, embedded_server: bool, api: bool) -> Settings:
    """The settings with the ports on which this stack will listen."""
    own: dict[str, Any] = {}
    if embedded_server:
        port = REDIS_PORT if is_free(REDIS_PORT) else free_port()
        own["redis_url"] = f"redis://127.0.0.1:{port}/0"
    if api and not is_free(settings.port, settings.host):
        if "port" in settings.model_fields_set:
            raise StackError(
                f"port {settings.port} on {settings.host} is taken; "
                "choose another with --port, or 0 for any free one"
            )
        own["port"] = free_port(settings.host)
        message = f"port {settings.port} is taken; the API listens on {own['port']} instead"
        say(StackEvent("stack", message, "warning"))
    elif api and settings.port == 0:
        own["port"] = free_port(settings.host)
    return settings.model_copy(update=own)


async def _check_given_server(settings: Settings) -> None:
    """Report at once what would make every child exit. The children wait for a server that is away."""
    redis = connect(settings.redis_url, settings.queue)
    try:
        with contextlib.suppress(QueueUnavailableError, TimeoutError):
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await check_queue(redis, settings.queue, allow_eviction=settings.allow_eviction)
    finally:
        await redis.aclose()


@contextlib.contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """One stack for each data folder."""
    with (data_dir / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StackError(f"another stack runs on {data_dir}; choose another --data") from error
        yield
