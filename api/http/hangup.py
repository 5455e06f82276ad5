"""Waiting on behalf of a client that may disconnect first, or whose key or this process may end."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from millpond.tasks import end_tasks

T = TypeVar("T")


async def until_hangup(
    work: Coroutine[Any, Any, T], receive: Receive, *ends: asyncio.Event
) -> T | None:
    """The result of ``work``; None if the client disconnects, or one of ``ends`` happens, before that.

    ``work`` has ended when this returns, if necessary by cancellation. The request's body must have been
    read, or be empty.
    """
    main = asyncio.ensure_future(work)
    others = [
        asyncio.ensure_future(_disconnected(receive)),
        *(asyncio.ensure_future(end.wait()) for end in ends),
    ]
    try:
        await asyncio.wait([main, *others], return_when=asyncio.FIRST_COMPLETED)
        return main.result() if main.done() else None
    finally:
        await end_tasks(main, *others)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
