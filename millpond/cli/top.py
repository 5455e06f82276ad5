"""``millpond top``: queues, workers, throughput, latency and endings, live."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator

from rich.console import Console, RenderableType
from rich.live import Live

from millpond.cli.connecting import run_with
from millpond.cli.options import DataFlag, QueueFlag, RedisFlag
from millpond.queue.connection import Connections, without_password
from millpond.settings import Settings
from millpond.tasks import end_tasks
from millpond.top.gathering import Gathering, Shown
from millpond.top.screen import draw
from millpond.top.terminal import keys_pressed

EVERY_S = 1.0


def top(redis_url: RedisFlag = None, name: QueueFlag = None, data: DataFlag = None) -> None:
    """Show what all queues of a server do, live. Prints it once if the output is no terminal."""
    run_with(_opened, lambda view: view.run(), redis_url, name, data)


class View:
    """The screen, and the keys that act on it: q quits, p pauses."""

    def __init__(self, gathering: Gathering, server: str) -> None:
        self._gathering = gathering
        self._server = server
        self._console = Console(highlight=False)
        self._paused = False
        self._quit = False
        self._pressed = asyncio.Event()

    async def run(self) -> None:
        if not self._console.is_terminal:
            self._console.print(self._drawn(await self._gathering.look()))
            return
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._on_key, "q")
        with (
            keys_pressed(self._on_key),
            Live(console=self._console, screen=True, auto_refresh=False) as live,
        ):
            shown = await self._gathering.look()
            while not self._quit:
                live.update(self._drawn(shown), refresh=True)
                await self._wait_for_key()
                if not self._paused:
                    shown = await self._gathering.look()

    async def _wait_for_key(self) -> None:
        self._pressed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EVERY_S):
                await self._pressed.wait()

    def _on_key(self, key: str) -> None:
        if key in "qQ":
            self._quit = True
        elif key in "pP":
            self._paused = not self._paused
        self._pressed.set()

    def _drawn(self, shown: Shown) -> RenderableType:
        width, height = self._console.size
        return draw(
            shown,
            self._gathering.history,
            self._server,
            width=width,
            height=height,
            paused=self._paused,
        )


@contextlib.asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[View]:
    connections = Connections(settings.redis_url)
    gathering = Gathering(connections, settings.queue)
    listening = asyncio.create_task(gathering.listen(), name="endings")
    try:
        yield View(gathering, without_password(settings.redis_url))
    finally:
        await end_tasks(listening)
        await connections.aclose()
