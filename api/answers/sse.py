"""Server-sent events, as they happen, to one client."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.access.open_answers import OpenAnswer
from api.http.hangup import until_hangup
from millpond.errors import MillpondError

HEARTBEAT_S = 15.0
RECONNECT_MS = 1_000

log = structlog.get_logger("millpond.api")


class EventStream(Response):
    """Sends events, encoded each, until they end, the client leaves, its key is revoked or the process stops.

    If Redis fails, the stream ends too; the client reconnects with Last-Event-ID.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        closing: asyncio.Event,
        opened: OpenAnswer,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        # No length is known; proxies are asked not to hold anything back.
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._closing = closing
        self._opened = opened
        self._heartbeat_s = heartbeat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await _send_chunk(send, b"retry: %d\n\n" % RECONNECT_MS)
        try:
            with self._opened as opened:
                sending = self._send_all(send)
                await until_hangup(sending, receive, self._closing, opened.revoked)
        except MillpondError as error:
            log.warning("event_stream_broken", code=error.code, cause=str(error))
        with contextlib.suppress(OSError):  # the client is gone
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send) -> None:
        heartbeat = asyncio.create_task(self._beat(send))
        try:
            async with contextlib.aclosing(self._events) as events:
                async for event in events:
                    await _send_chunk(send, event)
        except OSError:
            log.debug("client_left")
        finally:
            heartbeat.cancel()
            await asyncio.gather(heartbeat, return_exceptions=True)

    async def _beat(self, send: Send) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            await _send_chunk(send, b": still here\n\n")


def encode(type: str, data: bytes, id: str = "") -> bytes:
    """One event; ``data`` is one line. Events that are in no stream have no id."""
    id_line = b"id: %s\n" % id.encode() if id else b""
    return b"%sevent: %s\ndata: %s\n\n" % (id_line, type.encode(), data)


async def _send_chunk(send: Send, chunk: bytes) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})
