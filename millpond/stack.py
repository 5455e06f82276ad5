"""The embedded stack: server, worker and API as real processes, watched, stopped in order.

A child that dies is started again with a growing delay. Everything binds to loopback unless told
otherwise. The stack writes ``stack.json`` into its data folder, where the commands find it.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import orjson

from millpond.connection import connect
from millpond.errors import MillpondError, QueueUnavailableError
from millpond.membership import check_queue
from millpond.results import Results
from millpond.server import RedisServer, ServerOptions, free_port
from millpond.settings import Settings
from millpond.subscriptions import Subscriptions
from millpond.worker_state import RegisteredWorker, WorkerState

REDIS_PORT = 6390  # not Redis' own: a user's server may be there
STACK_FILE = "stack.json"
RESTART_DELAY_S = 0.5
RESTART_DELAY_MAX_S = 10.0
# A child that ran this long has earned a fresh start of its delay.
STEADY_AFTER_S = 30.0
POLL_S = 0.05
STOP_SLACK_S = 8.0
PR_SET_PDEATHSIG = 1


class StackError(MillpondError):
    """The stack cannot start: another one has the data folder, or a child does not come up."""

    code = "stack_failed"


@dataclass(frozen=True, slots=True)
class StackFile:
    """What a running stack says of itself."""

    pid: int
    redis_url: str
    queue: str
    api_url: str

    @classmethod
    def read(cls, data_dir: Path) -> "StackFile | None":
        """The stack that runs on this data folder, if one does."""
        try:
            found = cls(**orjson.loads((data_dir / STACK_FILE).read_bytes()))
            os.kill(found.pid, 0)
        except (OSError, ValueError, TypeError):
            return None
        return found


class Child:
    """One process that is to stay up. ``say`` hears in plain words of each death and restart."""

    def __init__(
        self,
        name: str,
        argv: list[str],
        environment: dict[str, str],
        *,
        stop_s: float,
        say: Callable[[str], None],
        log: IO[bytes] | None = None,
    ) -> None:
        self.name = name
        self._argv = argv
        self._environment = environment
        self._stop_s = stop_s
        self._say = say
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.deaths = 0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        await self._spawn()
        self._watcher = asyncio.create_task(self._watch(), name=f"watch-{self.name}")

    async def _spawn(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._argv,
            env={**os.environ, **self._environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            # Its own session: a Ctrl-C in the terminal reaches the stack alone, which stops in order.
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )

    async def _watch(self) -> None:
        delay_s = RESTART_DELAY_S
        while True:
            assert self._process is not None
            started_s = time.monotonic()
            status = await self._process.wait()
            self.deaths += 1
            if time.monotonic() - started_s > STEADY_AFTER_S:
                delay_s = RESTART_DELAY_S
            self._say(f"{self.name} ended with status {status}; starting it again in {delay_s:g} s")
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RESTART_DELAY_MAX_S)
            await self._spawn()

    def signal(self, number: signal.Signals) -> None:
        """Raises ProcessLookupError when it is not running at this moment."""
        if self._process is None or self._process.returncode is not None:
            raise ProcessLookupError(self.name)
        self._process.send_signal(number)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after its time; returns when it is gone."""
        if self._watcher is not None:
            self._watcher.cancel()
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._stop_s)
        except TimeoutError:
            self._say(f"{self.name} did not stop in {self._stop_s:g} s; killing it")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _end_with_parent() -> None:
    """Ask Linux to end this child should the stack itself be killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(slots=True)
class Stack:
    """What is running. ``children`` are in starting order; they stop in the opposite one."""

    settings: Settings
    children: dict[str, Child]

    @property
    def redis_url(self) -> str:
        return self.settings.redis_url

    @property
    def api_url(self) -> str:
        return f"http://{self.settings.host}:{self.settings.port}"

    async def wait_ready(self, timeout_s: float) -> WorkerState:
        """Until a worker is ready, and the API if it is part of this stack. Raises StackError."""
        redis = connect(self.redis_url)
        subscriptions = Subscriptions(redis)
        results = Results(redis, self.settings.queue, subscriptions)
        try:
            async with asyncio.timeout(timeout_s):
                while (worker := await _ready_worker(results)) is None:
                    self._check_deaths()
                    await asyncio.sleep(POLL_S)
                while "api" in self.children and not await self._api_ready():
                    self._check_deaths()
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            raise StackError(f"not ready after {timeout_s:g} s; see the logs") from error
        finally:
            await redis.aclose()
        return worker.state

    def _check_deaths(self) -> None:
        for child in self.children.values():
            if child.deaths >= 3:
                raise StackError(f"{child.name} does not stay up; see its log")

    async def _api_ready(self) -> bool:
        async with httpx.AsyncClient() as http:
            try:
                return (await http.get(f"{self.api_url}/readyz")).status_code == 200
            except httpx.HTTPError:
                return False


async def _ready_worker(results: Results) -> RegisteredWorker | None:
    try:
        state = await results.queue_state()
    except QueueUnavailableError:
        return None
    return next((w for w in state.workers if w.ready), None)


@contextlib.asynccontextmanager
async def running_stack(
    settings: Settings,
    *,
    embedded_server: bool,
    api: bool,
    say: Callable[[str], None],
    append_fsync: str = "everysec",
) -> AsyncIterator[Stack]:
    """Start the stack, hand it over, stop it in order: API, worker, server.

    Children log into ``data_dir``. Raises StackError when another stack holds the data folder, and
    UnsuitableServerError or QueueVersionError for a server of the user's that will not do.
    """
    data_dir = settings.data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as files:
        files.enter_context(_locked(data_dir))
        stack = Stack(settings, {})

        def child(name: str, argv: list[str], *, stop_s: float) -> Child:
            log = files.enter_context((data_dir / f"{name}.log").open("ab"))
            made = Child(name, argv, stack.settings.environment(), stop_s=stop_s, say=say, log=log)
            stack.children[name] = made
            return made

        try:
            if not embedded_server:
                await _check_given_server(settings)
            else:
                options = ServerOptions(data_dir / "redis", free_port(REDIS_PORT), append_fsync)
                server = RedisServer(options)
                options.data_dir.mkdir(exist_ok=True)
                stack.settings = settings.model_copy(update={"redis_url": server.url})
                argv = [str(server.binary), *options.arguments()]
                await child("redis", argv, stop_s=STOP_SLACK_S).start()
            if api:
                port = free_port(settings.port, settings.host)
                stack.settings = stack.settings.model_copy(update={"port": port})
            worker_stop_s = settings.grace_s + STOP_SLACK_S
            await child("worker", [sys.executable, "-m", "worker"], stop_s=worker_stop_s).start()
            if api:
                await child("api", [sys.executable, "-m", "api"], stop_s=STOP_SLACK_S).start()
            _write_stack_file(data_dir, stack)
            yield stack
        finally:
            (data_dir / STACK_FILE).unlink(missing_ok=True)
            for running in reversed(stack.children.values()):
                await running.stop()


async def _check_given_server(settings: Settings) -> None:
    """Say now what would end every child. One that is away is waited for by them."""
    redis = connect(settings.redis_url)
    try:
        with contextlib.suppress(QueueUnavailableError):
            await check_queue(redis, settings.queue, allow_eviction=settings.allow_eviction)
    finally:
        await redis.aclose()


@contextlib.contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """One stack for each data folder."""
    with (data_dir / "stack.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StackError(f"another stack runs on {data_dir}; choose another --data") from error
        yield


def _write_stack_file(data_dir: Path, stack: Stack) -> None:
    about = StackFile(os.getpid(), stack.redis_url, stack.settings.queue, stack.api_url)
    partial = data_dir / f"{STACK_FILE}.partial"
    partial.touch(mode=0o600)  # the URL may hold a password
    partial.write_bytes(orjson.dumps(about))
    partial.rename(data_dir / STACK_FILE)
