"""Refuses bodies that are too long: at once by Content-Length, else as soon as they exceed it."""

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.answers.errors import BodyTooLargeError, problem_of


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """Bytes of a field, and what the body may have beside it."""

    limit_bytes: int
    field: str = "body"
    beside_bytes: int = 0

    def check(self, num_bytes: int) -> None:
        """Raises BodyTooLargeError."""
        if num_bytes > self.limit_bytes + self.beside_bytes:
            raise BodyTooLargeError(self.limit_bytes, self.field)


class BodyLimitMiddleware:
    """``limits`` are those of exact paths, for the routes that may take more than ``limit``."""

    def __init__(self, app: ASGIApp, limit: BodyLimit, limits: Mapping[str, BodyLimit]) -> None:
        self._app = app
        self._limit = limit
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limits.get(scope["path"], self._limit)
        try:
            limit.check(_announced(scope))
        except BodyTooLargeError as error:
            # The server discards the unread body, so that the client can read the answer.
            await problem_of(error).response()(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                limit.check(received)
            return message

        await self._app(scope, counted, send)


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
