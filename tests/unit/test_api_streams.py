"""Event streams and body limits on the bare ASGI level, where every client misbehaves on demand."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.access.open_answers import OpenAnswer
from api.answers.errors import BodyTooLargeError, problem_of
from api.answers.sse import EventStream, encode
from api.answers.views import event_data
from api.http.body_limit import BodyLimit, BodyLimitMiddleware
from millpond.errors import QueueUnavailableError
from millpond.messages import EventType, JobEvent


class Client:
    """Takes what is sent; hangs up when told."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self.got = asyncio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.gone.is_set():
            raise OSError("gone")
        self.sent.append(message)
        self.got.set()

    @property
    def text(self) -> str:
        return b"".join(m.get("body", b"") for m in self.sent).decode()


class Source:
    """One event, then silence, or an outage."""

    def __init__(self, outage: Exception | None = None) -> None:
        self.closed = False
        self._outage = outage

    async def events(self) -> AsyncGenerator[bytes, None]:
        try:
            yield encode("started", b'{"type":"started","id":"a","attempt":1}', "1-0")
            if self._outage is not None:
                raise self._outage
            await asyncio.Event().wait()
        finally:
            self.closed = True


SCOPE: Scope = {"type": "http"}


async def test_a_client_that_leaves_closes_the_source() -> None:
    source, client = Source(), Client()
    stream = EventStream(source.events(), asyncio.Event(), OpenAnswer())
    serving = asyncio.create_task(stream(SCOPE, client.receive, client.send))
    await client.got.wait()

    client.gone.set()

    await asyncio.wait_for(serving, 5)
    assert source.closed


async def test_the_end_of_the_process_ends_the_answer_whole() -> None:
    source, client, closing = Source(), Client(), asyncio.Event()
    stream = EventStream(source.events(), closing, OpenAnswer())
    serving = asyncio.create_task(stream(SCOPE, client.receive, client.send))
    await client.got.wait()

    closing.set()

    await asyncio.wait_for(serving, 5)
    assert source.closed
    assert client.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_an_outage_ends_the_answer_whole() -> None:
    source, client = Source(QueueUnavailableError("away")), Client()
    stream = EventStream(source.events(), asyncio.Event(), OpenAnswer())

    await asyncio.wait_for(stream(SCOPE, client.receive, client.send), 5)

    assert client.sent[0]["status"] == 200
    assert 'event: started\ndata: {"type":"started"' in client.text
    assert client.sent[-1]["more_body"] is False


async def test_silence_is_filled_with_comments() -> None:
    source, client = Source(), Client()
    stream = EventStream(source.events(), asyncio.Event(), OpenAnswer(), heartbeat_s=0.001)
    serving = asyncio.create_task(stream(SCOPE, client.receive, client.send))
    async with asyncio.timeout(5):
        while client.text.count(": still here\n\n") < 2:
            client.got.clear()
            await client.got.wait()
    client.gone.set()
    await asyncio.wait_for(serving, 5)


def test_an_event_of_no_stream_has_no_id() -> None:
    event = JobEvent(type=EventType.RESET, id="a", attempt=1, reason="released")

    assert encode(event.type, event_data(event)) == (
        b'event: reset\ndata: {"type":"reset","id":"a","attempt":1,"reason":"released"}\n\n'
    )


LIMIT = 10


async def reading_app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the body and answers its length, as a route would."""
    size, more = 0, True
    try:
        while more:
            message = await receive()
            size += len(message["body"])
            more = message["more_body"]
        response: Response = Response(str(size))
    except BodyTooLargeError as error:
        response = problem_of(error).response()
    await response(scope, receive, send)


async def post(
    chunks: list[bytes], *, path: str = "/", length: bytes | None = None
) -> tuple[int, bytes, int]:
    """Status, body and how many chunks were read."""
    left = list(chunks)
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    headers: list[Any] = [] if length is None else [(b"content-length", length)]
    scope: Scope = {"type": "http", "path": path, "headers": headers}
    limited = BodyLimitMiddleware(reading_app, BodyLimit(LIMIT), {"/large": BodyLimit(20)})
    await limited(scope, receive, send)
    return sent[0]["status"], sent[1]["body"], len(chunks) - len(left)


async def test_a_body_of_just_the_limit_passes() -> None:
    assert await post([b"x" * 10], length=b"10") == (200, b"10", 1)
    assert await post([b"x" * 5, b"x" * 5]) == (200, b"10", 2)
    assert await post([b"x" * 20], path="/large", length=b"20") == (200, b"20", 1)


async def test_an_announced_excess_is_refused_unread() -> None:
    status, body, read = await post([b"x" * 11], length=b"11")
    assert (status, read) == (413, 0)
    assert b'"limit":10' in body


async def test_an_unannounced_excess_is_refused_when_it_shows() -> None:
    for length in (None, b"5", b"nonsense"):
        status, body, read = await post([b"x" * 6] * 9, length=length)
        assert (status, read) == (413, 2)
        assert b"body_too_large" in body
