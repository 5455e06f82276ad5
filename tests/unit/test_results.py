"""How a reader waits for the next message."""

import asyncio

from millpond.queue.results import _next


async def test_a_cancel_that_meets_a_message_is_not_forgotten() -> None:
    """The race: `asyncio.wait_for` on Python 3.11 returned the message, and the reader read on for ever."""
    inbox: asyncio.Queue[bytes] = asyncio.Queue()
    reader = asyncio.create_task(_next(inbox, 5.0))
    await asyncio.sleep(0)
    inbox.put_nowait(b"{}")
    reader.cancel()
    await asyncio.wait([reader])
    assert reader.cancelled()


async def test_silence_ends_with_the_time() -> None:
    assert await _next(asyncio.Queue(), 0.001) is None
