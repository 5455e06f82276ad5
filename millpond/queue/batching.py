"""Calls that arrive while a round trip to Redis is under way share the next one."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """A lone item goes out at once; the busier the process, the more items each round trip carries.

    ``send`` gets at most ``most`` items and returns an answer for each, in order. An answer that is an
    exception is raised to the one who sent the item; what ``send`` raises, to all who wait for it.
    """

    def __init__(
        self, name: str, send: Callable[[list[T]], Awaitable[Sequence[R | Exception]]], most: int
    ) -> None:
        self._name = name
        self._send = send
        self._most = most
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def __call__(self, item: T) -> R:
        """The answer to this item."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_all(), name=f"{self._name}-batcher")
        return await future

    async def _send_all(self) -> None:
        while self._waiting:
            batch = self._waiting[: self._most]
            del self._waiting[: self._most]
            try:
                answers = await self._send([item for item, _ in batch])
                for (_, future), answer in zip(batch, answers, strict=True):
                    _settle(future, answer)
            except Exception as error:  # passed on to all who wait
                for _, future in batch:
                    _settle(future, error)
            except asyncio.CancelledError:  # the process ends: nobody is to wait for ever
                for _, future in [*batch, *self._waiting]:
                    future.cancel()
                raise


def _settle(future: "asyncio.Future[R]", answer: R | Exception) -> None:
    if future.done():  # whoever asked has been cancelled
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
