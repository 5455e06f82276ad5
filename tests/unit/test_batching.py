"""Items that share round trips."""

import asyncio

import pytest

from millpond.queue.batching import Batcher


class Server:
    """Answers each item with its square, when it is let."""

    def __init__(self) -> None:
        self.trips: list[list[int]] = []
        self.free = asyncio.Event()
        self.free.set()

    async def send(self, items: list[int]) -> list[int | Exception]:
        self.trips.append(items)
        await self.free.wait()
        if 13 in items:
            raise ConnectionError("gone")
        return [ValueError("odd") if item == 7 else item * item for item in items]


async def test_what_comes_during_a_round_trip_shares_the_next() -> None:
    server = Server()
    batcher: Batcher[int, int] = Batcher("test", server.send, 3)
    server.free.clear()
    first = asyncio.create_task(batcher(1))
    while not server.trips:
        await asyncio.sleep(0)
    others = [asyncio.create_task(batcher(i)) for i in (2, 3, 4, 5)]
    await asyncio.sleep(0)
    server.free.set()

    assert await asyncio.gather(first, *others) == [1, 4, 9, 16, 25]
    assert server.trips == [[1], [2, 3, 4], [5]]


async def test_a_refusal_is_of_one_and_a_failure_of_all() -> None:
    server = Server()
    batcher: Batcher[int, int] = Batcher("test", server.send, 10)

    one = await asyncio.gather(batcher(2), batcher(7), return_exceptions=True)
    assert one[0] == 4
    assert isinstance(one[1], ValueError)
    gone = await asyncio.gather(batcher(2), batcher(13), return_exceptions=True)
    assert all(isinstance(answer, ConnectionError) for answer in gone)
    assert await batcher(3) == 9


async def test_who_leaves_stops_nobody_else() -> None:
    server = Server()
    batcher: Batcher[int, int] = Batcher("test", server.send, 10)
    server.free.clear()
    leaving, staying = (asyncio.create_task(batcher(i)) for i in (2, 3))
    while not server.trips:
        await asyncio.sleep(0)
    leaving.cancel()
    server.free.set()

    assert await staying == 9
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_nobody_waits_for_a_sender_that_was_cancelled() -> None:
    server = Server()
    batcher: Batcher[int, int] = Batcher("test", server.send, 1)
    server.free.clear()
    waiting = [asyncio.create_task(batcher(i)) for i in (2, 3)]
    while not server.trips:
        await asyncio.sleep(0)

    [sender] = [task for task in asyncio.all_tasks() if task.get_name() == "test-batcher"]
    sender.cancel()

    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(end, asyncio.CancelledError) for end in ended)
