"""Waiting on behalf of a client, who may go away first, as may its key and this process."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from millpond.tasks import end_tasks

T = TypeVar("T")


async def until_hangup(
    work: Coroutine[Any, Any, T], receive: Receive, *ends: asyncio.Event
) -> T | None:
    """What ``work`` returns; None when the client hung up, or one of the ``ends`` came, before that.

    ``work`` has ended, if need be by cancellation, when this returns. The request's body must have
    been read, or be empty.
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
