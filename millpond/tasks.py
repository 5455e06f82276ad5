"""Asyncio tasks: ending them reliably, and restarting those that a process depends on."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from millpond.logs import outline

AGAIN_S = 0.1
# A repeated failure is logged at most this often.
LOG_EVERY_S = 60.0

log = structlog.get_logger("millpond.tasks")


async def keep_running(name: str, work: Callable[[], Awaitable[None]], again_s: float) -> None:
    """Run ``work`` until it returns. If it raises, log that and restart it after ``again_s``.

    For background tasks, whose exceptions nobody else would see.
    """
    loop = asyncio.get_running_loop()
    logged: tuple[type[Exception], float] | None = None
    while True:
        try:
            await work()
        except Exception as error:
            now_s = loop.time()
            if logged is None or logged[0] is not type(error) or now_s - logged[1] > LOG_EVERY_S:
                log.error("task_failed", task=name, again_s=again_s, **outline(error))
                logged = type(error), now_s
            await asyncio.sleep(again_s)
        else:
            return


async def end_tasks(*tasks: "asyncio.Task[Any] | None") -> None:
    """Cancel tasks and wait until they have ended; None stands for one that was never started.

    Cancels repeatedly: before Python 3.12, `asyncio.wait_for`, which redis-py uses, loses a cancellation that
    arrives together with the result it waits for. Exceptions of the tasks are dropped.
    """
    ending = {task for task in tasks if task is not None}
    while ending:
        for task in ending:
            task.cancel()
        ended, ending = await asyncio.wait(ending, timeout=AGAIN_S)
        for task in ended:
            if not task.cancelled():
                task.exception()  # retrieved, so that asyncio does not warn


async def first_of(
    task: "asyncio.Task[Any]", other: Coroutine[Any, Any, Any], timeout_s: float | None = None
) -> None:
    """Wait until one of them ends, or the time is up. ``task`` keeps running; ``other`` is cancelled."""
    event = asyncio.ensure_future(other)
    await asyncio.wait({task, event}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    event.cancel()
