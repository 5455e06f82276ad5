"""A TCP proxy in front of the server that misbehaves on command."""

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Awaitable, Callable
from enum import StrEnum

from millpond.local.server import free_port
from millpond.queue.scripts import load_script

CHUNK_BYTES = 65_536
MAX_DELAY_S = 0.15


class Mode(StrEnum):
    """What befalls everything that passes. SWALLOW: commands arrive, their replies do not."""

    PASS = "pass"
    DELAY = "delay"
    RESET = "reset"
    CUT = "cut"
    SWALLOW = "swallow"


class Point(StrEnum):
    """Where one call is broken off: before the server hears of it, or before its reply is heard."""

    BEFORE = "before"
    AFTER = "after"


class Trap:
    """Springs once, at the ``nth`` call of ``script``; ``then`` runs before the connection breaks."""

    def __init__(
        self, script: str, point: Point, then: Callable[[], Awaitable[None]], nth: int = 1
    ) -> None:
        loaded = load_script(script)
        self._marks = (loaded.sha.encode(), loaded.source)
        self._left = nth
        self.point = point
        self.then = then
        self.sprung = asyncio.Event()

    def meets(self, commands: bytes) -> bool:
        if self._left > 0 and any(mark in commands for mark in self._marks):
            self._left -= 1
            return self._left == 0
        return False


class Connection:
    def __init__(self, client: "Stream", server: "Stream") -> None:
        self.client = client
        self.server = server
        self.deaf = (
            False  # a reply was swallowed, so none may follow: TCP loses no bytes in between
        )
        self.trap: Trap | None = None

    def abort(self) -> None:
        """RST to both sides."""
        for _, writer in (self.client, self.server):
            with contextlib.suppress(OSError, AttributeError):
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """``target_port`` is where new connections go; open ones stay where they are."""

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.mode = Mode.PASS
        self.trap: Trap | None = None
        self.chance = random.Random(6)
        self.target_port = target_port
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "Proxy":
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.break_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def break_all(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    def heal(self, *, leave_deaf: bool = False) -> None:
        """Back to normal. A connection whose replies were lost is broken, or left to time out."""
        self.mode = Mode.PASS
        for connection in list(self._connections):
            if connection.deaf and not leave_deaf:
                connection.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode in (Mode.RESET, Mode.CUT):
            writer.transport.abort()
            return
        try:
            server = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.transport.abort()
            return
        connection = Connection((reader, writer), server)
        self._connections.add(connection)
        pumps = (self._commands(connection), self._replies(connection))
        tasks = [asyncio.create_task(pump) for pump in pumps]
        self._tasks.update(tasks)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for _, end in (connection.client, connection.server):
                end.close()
            self._connections.discard(connection)
            self._tasks.difference_update(tasks)

    async def _commands(self, connection: Connection) -> None:
        with contextlib.suppress(OSError):
            while chunk := await connection.client[0].read(CHUNK_BYTES):
                await self._delay()
                trap = self.trap
                if trap is not None and trap.meets(chunk):
                    if trap.point is Point.BEFORE:
                        return await self._spring(trap, connection)
                    connection.trap = trap
                connection.server[1].write(chunk)
                await connection.server[1].drain()
        return None

    async def _replies(self, connection: Connection) -> None:
        with contextlib.suppress(OSError):
            while chunk := await connection.server[0].read(CHUNK_BYTES):
                await self._delay()
                if connection.trap is not None:
                    return await self._spring(connection.trap, connection)
                connection.deaf = connection.deaf or self.mode is Mode.SWALLOW
                if not connection.deaf:
                    connection.client[1].write(chunk)
                    await connection.client[1].drain()
        return None

    async def _spring(self, trap: Trap, connection: Connection) -> None:
        self.trap = None
        await trap.then()
        connection.abort()
        trap.sprung.set()

    async def _delay(self) -> None:
        if self.mode is Mode.DELAY:
            await asyncio.sleep(self.chance.uniform(0.0, MAX_DELAY_S))
