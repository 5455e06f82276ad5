"""Several API processes on one port: started, restarted when they die, stopped together.

The kernel spreads the connections over them (``SO_REUSEPORT``). They have nothing in common but Redis,
and the folder in which each keeps its counters for ``/metrics``.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile

import structlog

from millpond.errors import MillpondError
from millpond.local.child import Child
from millpond.local.stack_events import StackEvent
from millpond.settings import Settings

# The argument by which such a process knows that it is one of several.
ONE_OF_SEVERAL = "--one-of-several"
LOOK_EVERY_S = 0.1
# A process that has run for this long has started well.
STARTED_AFTER_S = 3.0
STOP_S = 8.0
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

log = structlog.get_logger("millpond.api")


class ProcessesError(MillpondError):
    """The processes cannot be started, or do not stay up."""

    code = "api_processes_failed"


def bound_socket(host: str, port: int, *, shared: bool) -> socket.socket:
    """A TCP socket on the address. ``shared``: others of this user may have it too."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    # Else each small answer waits 40 ms for an acknowledgement.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ProcessesError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
    return bound


async def serve(settings: Settings) -> None:
    """Run ``api_processes`` of them until SIGTERM or SIGINT. Raises ProcessesError."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    bound_socket(settings.host, settings.port, shared=False).close()  # nobody else has it
    with (
        # Bound and not listening: it keeps the port for as long as all of them, whoever dies.
        bound_socket(settings.host, settings.port, shared=True) as held,
        tempfile.TemporaryDirectory(prefix="millpond-metrics-") as folder,
    ):
        own = settings.model_copy(update={"port": held.getsockname()[1], "api_processes": 1})
        environment = own.environment() | {METRICS_FOLDER: folder}
        argv = [sys.executable, "-P", "-m", "api", ONE_OF_SEVERAL]
        children = [
            Child(f"api-{i}", argv, environment, stop_s=STOP_S, say=_say)
            for i in range(1, settings.api_processes + 1)
        ]
        try:
            for child in children:
                await child.start()
            log.info("listening", host=own.host, port=own.port, processes=len(children))
            await _look_after(children, stopped)
        finally:
            await asyncio.gather(*(child.stop() for child in children))


async def _look_after(children: list[Child], stopped: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    since: dict[int, float] = {}
    while not stopped.is_set():
        now_s = loop.time()
        for child in children:
            if (
                child.pid is not None
                and now_s - since.setdefault(child.pid, now_s) > STARTED_AFTER_S
            ):
                child.mark_ready()
            if (reason := child.hopeless) is not None:
                raise ProcessesError(reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_EVERY_S):
                await stopped.wait()


def _say(event: StackEvent) -> None:
    log.log(30 if event.level in ("warning", "error") else 20, event.message, process=event.source)


def counters_are_shared() -> bool:
    """Whether this process writes its counters where the others' are."""
    return METRICS_FOLDER in os.environ
