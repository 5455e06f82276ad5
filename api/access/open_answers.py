"""Open answers (event streams, long polls): limits their number for each key, and ends them with the key."""

import asyncio

from api.access.gate import Caller
from api.answers.errors import TooManyStreamsError
from millpond.access.api_keys import ApiKeys
from millpond.errors import QueueUnavailableError

LOOK_EVERY_S = 1.0


class OpenAnswer:
    """An open answer. ``revoked`` is set when its key is revoked; `close` it at its end."""

    def __init__(self, key: "_OpenKey | None" = None) -> None:
        self._key = key
        self.revoked = asyncio.Event() if key is None else key.revoked

    def close(self) -> None:
        """Safe to repeat."""
        if self._key is not None:
            self._key.answers -= 1
            self._key = None

    def __enter__(self) -> "OpenAnswer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class OpenAnswers:
    """Those of this process. ``limit`` is for keys without their own; without keys there is no limit."""

    def __init__(self, keys: ApiKeys, limit: int) -> None:
        self._keys = keys
        self._limit = limit
        self._open: dict[str, _OpenKey] = {}

    def open(self, caller: Caller) -> OpenAnswer:
        """Raises TooManyStreamsError."""
        if caller.key is None:
            return OpenAnswer()
        limit = caller.key.limits.open_streams or self._limit
        key = self._open.setdefault(caller.key.id, _OpenKey())
        if key.answers >= limit:
            raise TooManyStreamsError(limit)
        key.answers += 1
        return OpenAnswer(key)

    async def watch_forever(self) -> None:
        """Look for revoked keys until cancelled. While Redis is away, answers stay open."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self._open = {id: key for id, key in self._open.items() if key.answers}
            try:
                gone = await self._keys.revoked(list(self._open))
            except QueueUnavailableError:
                continue
            for id in gone & self._open.keys():
                self._open[id].revoked.set()


class _OpenKey:
    def __init__(self) -> None:
        self.answers = 0
        self.revoked = asyncio.Event()
