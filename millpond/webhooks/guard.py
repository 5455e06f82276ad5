"""Resolves a receiver's name, and lets through only addresses that may be called."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from millpond.errors import WebhookForbiddenError
from millpond.webhooks.addresses import Network, may_be_called

# Name, port -> its addresses. Raises OSError when it has none, or nobody answers.
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

DEFAULT_PORTS = {"http": 80, "https": 443}
# A resolver that does not answer holds these threads and no others.
THREADS = 4


class SystemResolver:
    """The system's own, on threads of its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="resolving")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _look_up, host, port)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label that is too long
        raise OSError(f"{host!r} is no name") from error
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Guard:
    """Whoever connects must connect to what `addresses` returns: a second look at the name may find
    another address, on purpose.
    """

    def __init__(self, resolve: Resolver, allowed: Sequence[Network] = ()) -> None:
        self._resolve = resolve
        self._allowed = tuple(allowed)

    async def check(self, url: str) -> None:
        """Whether this URL's name has an address that may be called. Raises as `addresses` does."""
        parts = urlsplit(url)
        await self.addresses(parts.hostname or "", parts.port or DEFAULT_PORTS[parts.scheme])

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of this name that may be called, at least one.

        ``host`` may be an address, in any of its notations. Raises WebhookForbiddenError if it has
        addresses but none of these, OSError if it has none.
        """
        found = await self._resolve(host, port)
        permitted = [address for address in found if may_be_called(address, self._allowed)]
        if not permitted:
            raise WebhookForbiddenError
        return permitted
