"""Ending asyncio tasks reliably."""

import asyncio
from typing import Any

AGAIN_S = 0.1


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
