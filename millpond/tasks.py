"""Ending asyncio tasks for certain."""

import asyncio
from typing import Any

AGAIN_S = 0.1


async def end_tasks(*tasks: "asyncio.Task[Any] | None") -> None:
    """Cancel tasks and wait until they have ended; None stands for one that never began.

    Until heard: before Python 3.12 a cancellation that comes together with what the task waits for is
    lost in `asyncio.wait_for`, on which redis-py relies. What the tasks raise is dropped.
    """
    ending = {task for task in tasks if task is not None}
    while ending:
        for task in ending:
            task.cancel()
        ended, ending = await asyncio.wait(ending, timeout=AGAIN_S)
        for task in ended:
            if not task.cancelled():
                task.exception()  # heard, so that nobody warns of it
