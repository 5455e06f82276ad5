"""Connect, run, close: how every client command reaches a queue, by the one place that does it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeVar

from redis.asyncio import Redis

from millpond.cli.options import client_settings
from millpond.client import Client
from millpond.errors import ModelLoadError
from millpond.models import hub
from millpond.models.presets import Preset
from millpond.queue.connection import connect
from millpond.queue.keys import Keys
from millpond.settings import Settings

T = TypeVar("T")
R = TypeVar("R")

Opens = Callable[[Settings], AbstractAsyncContextManager[T]]


def run_with(
    opens: Opens[T],
    call: Callable[[T], Coroutine[Any, Any, R]],
    redis_url: str | None,
    queue: str | None,
    data: Path | None,
) -> R:
    """Open what ``opens`` makes on the queue that the flags mean, call, and close it."""
    settings = client_settings(redis_url, queue, data)

    async def run() -> R:
        async with opens(settings) as opened:
            return await call(opened)

    return asyncio.run(run())


def on_redis(make: Callable[[Redis, Keys], T]) -> Opens[T]:
    """For what needs no more than a connection and the queue's keys."""

    @contextlib.asynccontextmanager
    async def opened(settings: Settings) -> AsyncIterator[T]:
        redis = connect(settings.redis_url, settings.queue)
        try:
            yield make(redis, Keys(settings.queue))
        finally:
            await redis.aclose()

    return opened


def open_client(settings: Settings) -> Client:
    return Client(
        settings.redis_url,
        settings.queue,
        options=settings.queue_options(),
        preset=_known_preset(settings),
    )


def _known_preset(settings: Settings) -> Preset | None:
    """The served model's limits, where it is known which one that is and they lie on this machine."""
    if settings.model is None or hub.is_hub_name(settings.model):
        return None
    try:
        return settings.preset()
    except ModelLoadError:  # a folder of the machine on which the worker runs
        return None
