"""What a client may make a connection hold or wait, before anybody knows who it is. Raw sockets."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest

from millpond.local.server import RedisServer
from tests.integration.conftest import RunningApi, StartApi, listening

LIMIT = 32 * 1024
GET = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n"
POST = (
    b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)
PATIENCE_S = 10.0


class Raw:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[int, Any]:
        """The next answer: its status, and its body read as JSON."""
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
            [length] = [
                line.split(":")[1] for line in head.split("\r\n") if "content-length" in line
            ]
            body = await self.reader.readexactly(int(length))
        return int(head.split()[1]), json.loads(body)

    async def closed(self) -> bytes:
        """What came until the server closed it."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""


@contextlib.asynccontextmanager
async def connected(api: RunningApi) -> AsyncIterator[Raw]:
    url = api.http.base_url
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        yield Raw(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.fixture
async def hasty(redis_server: RedisServer, start_api: StartApi) -> AsyncIterator[RunningApi]:
    """Whoever is slower than 0.3 s, or 100 kB/s, is given up."""
    async with start_api(
        redis_server.url, header_timeout_s=0.3, min_body_bytes_per_s=100_000
    ) as api:
        yield api


def padded(size: int) -> bytes:
    """A request whose head has exactly so many bytes."""
    return GET + b"X-Padding: " + b"a" * (size - len(GET) - 15) + b"\r\n\r\n"


async def test_headers_are_limited_to_the_byte(api: RunningApi) -> None:
    assert len(padded(LIMIT)) == LIMIT
    async with connected(api) as raw:
        for _ in range(2):
            raw.writer.write(padded(LIMIT))
            assert (await raw.answer())[0] == 200
        raw.writer.write(padded(LIMIT + 1))
        status, problem = await raw.answer()
        assert (status, problem["code"]) == (431, "headers_too_large")
        assert str(LIMIT) in problem["detail"]
        assert await raw.closed() == b""


def send_huge_header(host: str, port: int) -> bytes:
    """As much of 150 MB as the server takes, and then what it has answered."""
    with socket.create_connection((host, port), timeout=PATIENCE_S) as client:
        client.sendall(GET + b"X-Padding: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(150):
                client.sendall(b"a" * 1_000_000)
        return client.recv(100_000)


async def test_a_huge_header_takes_neither_memory_nor_time(api: RunningApi) -> None:
    """150 MB of it held the API for 24 s and 372 MB, before any key was asked for."""
    before = psutil.Process().memory_info().rss
    url = api.http.base_url
    sent = asyncio.create_task(asyncio.to_thread(send_huge_header, url.host, url.port))
    slowest_s = 0.0
    async with asyncio.timeout(PATIENCE_S):
        while not sent.done():
            started_s = time.monotonic()
            assert (await api.http.get("/healthz")).status_code == 200
            slowest_s = max(slowest_s, time.monotonic() - started_s)
    assert (await sent).startswith(b"HTTP/1.1 431 ")
    assert slowest_s < 2.0
    assert psutil.Process().memory_info().rss - before < 32 * 2**20


async def test_a_long_url_and_what_is_no_http(api: RunningApi) -> None:
    bad = {
        b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % (b"a" * 9_000): (414, "url_too_long"),
        b"\x16\x03\x01 hello\r\n\r\n": (400, "invalid_http"),
        b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n": (400, "invalid_http"),
    }
    for request, expected in bad.items():
        async with connected(api) as raw:
            raw.writer.write(request)
            status, problem = await raw.answer()
            assert (status, problem["code"]) == expected
            assert await raw.closed() == b""


async def test_trailers_count_as_headers_and_are_not_read(api: RunningApi) -> None:
    head = (
        b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    body = b'10\r\n{"prompt": "hi"}\r\n0\r\n'
    async with connected(api) as raw:
        raw.writer.write(head + body + b"Idempotency-Key: \xff\r\n\r\n")
        assert (await raw.answer())[0] == 202
        raw.writer.write(head + body[:-3])
        raw.writer.write(b"0\r\nX-Padding: " + b"a" * 2 * LIMIT)
        assert (await raw.answer())[1]["code"] == "headers_too_large"


async def test_half_sent_headers_are_given_up(hasty: RunningApi) -> None:
    """200 of them stayed for ever."""
    async with contextlib.AsyncExitStack() as stack:
        raws = [await stack.enter_async_context(connected(hasty)) for _ in range(200)]
        before = psutil.Process().memory_info().rss
        for raw in raws:
            raw.writer.write(GET + b"X-Slow: ")
        assert (await hasty.http.get("/healthz")).status_code == 200
        answers = await asyncio.gather(*(raw.answer() for raw in raws))
        assert {(status, body["code"]) for status, body in answers} == {(408, "request_timeout")}
        await asyncio.gather(*(raw.closed() for raw in raws))
    assert psutil.Process().memory_info().rss - before < 32 * 2**20
    await only_ours(hasty)


async def only_ours(api: RunningApi) -> None:
    """Until no connection is left but the one that `RunningApi.http` keeps."""
    async with asyncio.timeout(PATIENCE_S):
        while len(api.server.connections) > 1:
            await asyncio.sleep(0.01)


async def test_one_byte_now_and_then_does_not_help(hasty: RunningApi) -> None:
    async with connected(hasty) as raw:
        answer = asyncio.create_task(raw.answer())
        while not answer.done():
            raw.writer.write(b"A")
            await asyncio.sleep(0.02)
        assert (await answer)[0] in (400, 408)
    async with connected(hasty) as raw:
        raw.writer.write(GET)
        answer = asyncio.create_task(raw.answer())
        while not answer.done():
            raw.writer.write(b"X-A: b\r\n")
            await asyncio.sleep(0.02)
        assert (await answer)[0] == 408


async def test_a_connection_that_says_nothing_is_closed(hasty: RunningApi) -> None:
    async with connected(hasty) as silent, connected(hasty) as newlines:
        newlines.writer.write(b"\r\n")
        assert await silent.closed() == b""
        assert await newlines.closed() == b""


async def test_a_body_must_keep_its_pace(hasty: RunningApi) -> None:
    async with connected(hasty) as raw:
        raw.writer.write(POST % 10_000 + b'{"prompt": "')
        status, problem = await raw.answer()
        assert (status, problem["code"]) == (408, "request_timeout")
        assert await raw.closed() == b""
    # A steady one may take longer than any timeout.
    body = b'{"prompt": "' + b"a" * 200_000 + b'"}'
    async with connected(hasty) as raw:
        raw.writer.write(POST % len(body))
        for at in range(0, len(body), 10_000):
            raw.writer.write(body[at : at + 10_000])
            await asyncio.sleep(0.04)
        assert (await raw.answer())[0] == 422  # longer than the model's limit, but read
    assert await hasty.queue.depth() == 0


async def test_the_rest_of_a_body_without_a_key_is_not_waited_for_long(
    keyed_api: RunningApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.http.protocol.DRAIN_S", 0.2)
    async with connected(keyed_api) as raw:
        raw.writer.write(POST % 1_000_000 + b"{")
        assert (await raw.answer())[0] == 401
        assert await raw.closed() == b""
    async with connected(keyed_api) as raw:
        raw.writer.write(POST % 10 + b"{")
        assert (await raw.answer())[0] == 401
        raw.writer.write(b"123456789" + GET + b"\r\n")
        assert (await raw.answer())[0] == 200


async def test_too_many_idle_connections_push_out_the_longest_idle(
    redis_server: RedisServer, start_api: StartApi
) -> None:
    async with (
        start_api(redis_server.url, max_idle_connections=3) as api,
        connected(api) as busy,
        contextlib.AsyncExitStack() as stack,
    ):
        id = await api.submit()
        busy.writer.write(
            b"GET /v1/jobs/%s/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % id.encode()
        )
        await busy.reader.readuntil(b"\r\n\r\n")
        raws = []
        for _ in range(5):
            raws.append(await stack.enter_async_context(connected(api)))
            raws[-1].writer.write(GET + b"\r\n")
            assert (await raws[-1].answer())[0] == 200
        assert [await raw.closed() for raw in raws[:2]] == [b"", b""]
        for raw in raws[2:]:
            raw.writer.write(GET + b"\r\n")
            assert (await raw.answer())[0] == 200
        # The stream is under way all the time.
        await api.complete(await api.claim())
        assert b"event: finished" in await busy.reader.readuntil(b"0\r\n\r\n")


async def test_there_are_no_more_connections_than_allowed(
    redis_server: RedisServer, start_api: StartApi
) -> None:
    async with (
        start_api(redis_server.url, max_connections=3) as api,
        contextlib.AsyncExitStack() as stack,
    ):
        id = await api.submit()
        # The third pushes out the idle one by which that came, and then nobody is idle any more.
        one, two, three = [await stack.enter_async_context(connected(api)) for _ in range(3)]
        poll = b"GET /v1/jobs/%s?wait=20 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % id.encode()
        for raw in (one, two, three):
            raw.writer.write(poll)
        await listening(api, id)
        async with asyncio.timeout(PATIENCE_S):
            while api.server.connections.idle:
                await asyncio.sleep(0.01)
        async with connected(api) as fourth:
            status, problem = await fourth.answer()
            assert (status, problem["code"]) == (503, "too_many_connections")
            assert await fourth.closed() == b""
        await api.complete(await api.claim())
        for raw in (one, two, three):
            assert (await raw.answer())[1]["status"] == "succeeded"
        async with connected(api) as fifth:
            fifth.writer.write(GET + b"\r\n")
            assert (await fifth.answer())[0] == 200
        metrics = (await api.http.get("/metrics")).text
    assert 'millpond_http_refused_total{code="too_many_connections"} 1.0' in metrics


async def test_pipelined_requests_are_answered_in_order_and_bounded(api: RunningApi) -> None:
    async with connected(api) as raw:
        raw.writer.write((GET + b"\r\n") * 5 + b"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert [(await raw.answer())[0] for _ in range(6)] == [200] * 5 + [404]
    async with connected(api) as raw:
        id = await api.submit()
        raw.writer.write(
            b"GET /v1/jobs/%s?wait=20 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % id.encode()
        )
        await listening(api, id)
        raw.writer.write((GET + b"\r\n") * 100)
        assert await raw.closed() == b""
        await listening(api, id, wanted=False)


async def test_a_stream_behind_which_something_waits_ends_with_its_client(api: RunningApi) -> None:
    """uvicorn tells only the newest request that the client is gone: the stream went on for ever."""
    id = await api.submit()
    async with connected(api) as raw:
        raw.writer.write(
            b"GET /v1/jobs/%s/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % id.encode()
        )
        await listening(api, id)
        raw.writer.write(GET + b"\r\n")
        await raw.reader.readuntil(b"retry: ")
        while not any(connection.pipeline for connection in api.server.server_state.connections):
            await asyncio.sleep(0.01)
    await listening(api, id, wanted=False)
