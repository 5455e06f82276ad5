"""The HTTP server around the application: uvicorn, made to stop without waiting for long polls."""

import asyncio
import functools
import resource
import signal
import socket
from typing import cast

import structlog
import uvicorn
from fastapi import FastAPI

from api.http.connections import ConnectionLimits, Connections
from api.http.protocol import BoundedProtocol
from api.metrics import metrics_of
from api.processes import bound_socket
from api.services import services_of
from millpond.settings import Settings

# Time for active answers when the process is told to stop.
GRACE_S = 2
# Open files in addition to clients' connections: Redis, the tokenizer, logs.
OTHER_FILES = 256

log = structlog.get_logger("millpond.api")


class ApiServer(uvicorn.Server):
    """Ends event streams and long polls before it waits for open connections."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self.connections = Connections(ConnectionLimits.of(settings))
        refused = metrics_of(app).refused
        protocol = functools.partial(
            BoundedProtocol,
            connections=self.connections,
            on_refusal=lambda code: refused.labels(code).inc(),
        )
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                # A class to uvicorn's types; it only ever calls it.
                http=cast(type[asyncio.Protocol], protocol),
                loop="uvloop",
                ws="none",
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=cast(int, settings.keep_alive_s),
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port, *_ = self.servers[0].sockets[0].getsockname()
        log.info("listening", host=host, port=port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("stopping")
        services_of(self._app).closing.set()
        await super().shutdown(sockets)

    def run_until_signal(self, *, shared_port: bool) -> None:
        """Serve until SIGTERM or SIGINT, and return then. ``shared_port``: other processes have it too.

        uvicorn puts back the handlers that it found and raises the signal once more: these are
        ours, so that the process ends with status 0.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle_exit)
        allow_files(self.connections.limits.connections + OTHER_FILES)
        host, port = self.config.host, self.config.port
        self.run(sockets=[bound_socket(host, port, shared=True)] if shared_port else None)


def allow_files(wanted: int) -> None:
    """Let this process open so many files, each connection being one, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    allowed = wanted if unlimited else min(wanted, hard)
    if allowed < wanted:
        log.warning("few_files", allowed=allowed, wanted=wanted)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
