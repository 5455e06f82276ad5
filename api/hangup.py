"""Waiting on behalf of a client, who may go away first, as may this process."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from millpond.tasks import end_tasks

T = TypeVar("T")


async def until_hangup(
    work: Coroutine[Any, Any, T], receive: Receive, closing: asyncio.Event
) -> T | None:
    """What ``work`` returns; None when the client hung up or the process began to stop before that.

    ``work`` has ended, if need be by cancellation, when this returns. The request's body must have
    been read, or be empty.
    """
    main = asyncio.ensure_future(work)
    others = [
        asyncio.ensure_future(_disconnected(receive)),
        asyncio.ensure_future(closing.wait()),
    ]
    try:
        await asyncio.wait([main, *others], return_when=asyncio.FIRST_COMPLETED)
        return main.result() if main.done() else None
    finally:
        await end_tasks(main, *others)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
