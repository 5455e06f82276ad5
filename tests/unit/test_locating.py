"""Who is asked where the server is, in which order, and what is believed."""

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError

from millpond.queue.connection.address import Node
from millpond.queue.connection.locating import ClusterLocator, Locator, SentinelLocator

A, B, C, D = (("a", 1), ("b", 2), ("c", 3), ("d", 4))


class Asking(Locator):
    """Each node says what it knows; one that is not among them is away."""

    def __init__(self, **knows: Node | None) -> None:
        super().__init__([A, B, C], {})
        self.knows = knows
        self.asked = ""

    _wanted = "the server"

    async def _ask(self, redis: Redis, node: Node) -> Node | None:
        self.asked += node[0]
        if node[0] not in self.knows:
            raise ConnectionError("away")
        return self.knows[node[0]]


async def test_the_first_that_knows_is_believed_and_the_next_is_asked_first() -> None:
    locator = Asking(a=None, b=D, c=C)
    assert [await locator.locate() for _ in range(3)] == [D, C, D]
    assert locator.asked == "ab" + "c" + "ab"


async def test_those_who_are_away_cost_one_look_each() -> None:
    locator = Asking(c=D)
    assert [await locator.locate(), await locator.locate()] == [D, D]
    assert locator.asked == "abc" + "abc"


async def test_when_none_knows_all_are_named() -> None:
    with pytest.raises(ConnectionError, match="none of a:1, b:2, c:3 knows the server"):
        await Asking(a=None).locate()


class Answering(Redis):
    """A client whose server answers this to every command."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    async def execute_command(self, *args: object, **options: object) -> object:
        return self.answer


async def test_a_sentinel_that_knows_another_group_does_not_know() -> None:
    locator = SentinelLocator([A], {}, "pond")
    assert await locator._ask(Answering((b"10.0.0.1", b"6379")), A) == ("10.0.0.1", 6379)
    assert await locator._ask(Answering(None), A) is None


async def test_a_cluster_tells_of_its_nodes_and_who_has_the_slot() -> None:
    """One without an address of its own is where it was asked; a slot may have no node."""
    locator = ClusterLocator([A], {}, "{default}")  # slot 5718
    ranges = [
        [0, 5000, [b"d", 4, b"id"], [b"b", 2, b"id"]],
        [5001, 9000, [b"", 7, b"id"], [b"c", 3, b"id"]],
    ]
    assert await locator._ask(Answering(ranges), A) == ("a", 7)
    assert locator._nodes == [A, D, B, ("a", 7), C]
    assert await locator._ask(Answering(ranges[:1]), A) is None
