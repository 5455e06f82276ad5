"""HTTP/1.1 on one connection: uvicorn's protocol, with a bound on all that a client may make it wait or hold.

uvicorn's own has none: it collects headers as long as they come, and waits for the rest of a request as
long as nothing comes.
"""

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from api.answers.problems import UNAVAILABLE_RETRY_S, Problem
from api.http.connections import Connections

# Requests that may wait on one connection for the answers to those before them.
MAX_PIPELINED = 32
MAX_URL_BYTES = 8 * 1024
# What a refused client still sends is thrown away for so long, that it may come to read the answer: a
# connection that is closed with unread bytes is reset.
LINGER_S = 1.0
LINGER_BYTES = 1024 * 1024
# The rest of a body whose request is answered already, such as one without a key.
DRAIN_S = 5.0

INVALID_HTTP = Problem(400, "invalid_http", "this is no HTTP/1.1 request")
TIMED_OUT = Problem(408, "request_timeout", "the request did not come in time; send it again")
URL_TOO_LONG = Problem(
    414, "url_too_long", f"the URL is longer than {MAX_URL_BYTES} bytes, the limit"
)
TOO_MANY_PIPELINED = Problem(
    400, "too_many_pipelined", f"more than {MAX_PIPELINED} requests wait on this connection"
)
TOO_MANY_CONNECTIONS = Problem(
    503,
    "too_many_connections",
    "as many connections are open as there may be; try again",
    retry_after_s=UNAVAILABLE_RETRY_S,
)


def headers_too_large(limit: int) -> Problem:
    detail = f"request line and headers are longer than {limit} bytes, the limit"
    return Problem(431, "headers_too_large", detail)


class BoundedProtocol(HttpToolsProtocol):
    """One request is in one of three states: its head comes, its body comes, its answer is awaited.

    A clock runs in the first two: ``header_timeout_s`` for the head, and as long for the body, longer
    by the time that the bytes received so far take at the least rate. ``on_refusal`` hears the code of
    each problem that is answered here, past the application.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        connections: Connections,
        on_refusal: Callable[[str], None],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._open = connections
        self._on_refusal = on_refusal
        self._limits = connections.limits
        self._timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._head_begun = False
        self._body_awaited = False
        self._body_since_s = 0.0
        self._body_bytes = 0
        # Bytes since the request began, or since the last one of its body: a head, else trailers and the
        # like. `_moved`: the piece that is being parsed ended a head, or brought some of a body.
        self._overhead_bytes = 0
        self._moved = False
        self._refusal = INVALID_HTTP
        self._lingering_bytes: int | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._open.admit(self):
            self._wait(self._limits.header_timeout_s, self._head_is_late)
        else:
            self._write(TOO_MANY_CONNECTIONS)
            self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.forget(self)
        self._stop_waiting()
        self._unset_keepalive_if_required()
        self._leave_alone()
        super().connection_lost(exc)

    def drop(self) -> None:
        self._stop_waiting()
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        at = 0
        while at < len(data) and not self.transport.is_closing():
            if self._lingering_bytes is not None:
                self._throw_away(len(data) - at)
                return
            # No more than may still come, so that a head is refused at its limit.
            piece = data[at : at + self._limits.header_bytes - self._overhead_bytes]
            at += len(piece)
            self._moved = False
            super().data_received(piece)
            self._overhead_bytes = 0 if self._moved else self._overhead_bytes + len(piece)
            if self._overhead_bytes >= self._limits.header_bytes and self._lingering_bytes is None:
                self._refuse(headers_too_large(self._limits.header_bytes))
        if not self.transport.is_closing() and self._lingering_bytes is None:
            self._watch()

    # What the parser calls

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_begun = True

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._give_up(URL_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Others are trailers, which nobody reads.
        if self._head_begun:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._give_up(TOO_MANY_PIPELINED)
        self._head_begun = False
        self._moved = True
        self._stop_waiting()
        self._open.begin(self)
        super().on_headers_complete()
        # uvicorn stops reading where requests queue up, and then does not notice that the client leaves.
        self.flow.resume_reading()
        self._body_awaited = True
        self._body_since_s = self.loop.time()
        self._body_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._moved = True
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._moved = True
        self._body_awaited = False
        self._stop_waiting()
        super().on_message_complete()
        self._rest()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn does when the parser, or one of the above, has given up."""
        self._refuse(self._refusal)

    def _give_up(self, problem: Problem) -> NoReturn:
        self._refusal = problem
        raise ValueError(problem.code)

    # The answer

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._body_awaited and not self._answering:
            self._wait(DRAIN_S, self.drop)
        elif self._head_begun and not self._answering:
            self._unset_keepalive_if_required()
            self._watch()
        self._rest()

    def _rest(self) -> None:
        """The connection is idle once all that was asked is answered."""
        if not self._body_awaited and not self._answering:
            self._open.end(self)

    @property
    def _answering(self) -> bool:
        running = self._running
        return running is not None and not (running.response_complete or running.disconnected)

    # Clocks

    def _watch(self) -> None:
        """Have a clock run wherever the next move is the client's."""
        if self._timer is not None or self.timeout_keep_alive_task is not None:
            return
        if self._body_awaited:
            self._wait(self._limits.header_timeout_s, self._look_at_body)
        elif not self._answering:
            self._wait(self._limits.header_timeout_s, self._head_is_late)

    def _wait(self, delay_s: float, then: Callable[[], None]) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(delay_s, then)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_is_late(self) -> None:
        if self._head_begun:
            self._refuse(TIMED_OUT)
        else:
            self.drop()

    def _look_at_body(self) -> None:
        now_s = self.loop.time()
        due_s = self._body_bytes / self._limits.min_body_bytes_per_s
        if self.flow.read_paused:  # the delay is ours
            self._body_since_s = now_s - due_s
        end_s = self._body_since_s + due_s + self._limits.header_timeout_s
        if now_s < end_s:
            self._wait(end_s - now_s, self._look_at_body)
        else:
            self._refuse(TIMED_OUT)

    # The end

    def _refuse(self, problem: Problem) -> None:
        """Say why, if no other answer is under way, and close once the client has had time to read it."""
        # Else the answer that is under way is to an earlier request, or has begun.
        own = self._body_awaited and self._running is self.cycle and not self.cycle.response_started
        if self._answering and not own:
            self.drop()
            return
        self._write(problem)
        self.transport.write_eof()
        self._leave_alone()
        self._lingering_bytes = 0
        self.flow.resume_reading()
        self._wait(LINGER_S, self.transport.abort)

    def _write(self, problem: Problem) -> None:
        self._on_refusal(problem.code)
        response = problem.response({"Connection": "close"})
        head = [*self.server_state.default_headers, *response.raw_headers]
        lines = b"".join(b"%s: %s\r\n" % pair for pair in head)
        self.transport.write(STATUS_LINE[problem.status] + lines + b"\r\n" + bytes(response.body))

    def _throw_away(self, size: int) -> None:
        assert self._lingering_bytes is not None
        self._lingering_bytes += size
        if self._lingering_bytes > LINGER_BYTES:
            self.transport.abort()

    def _leave_alone(self) -> None:
        """The application learns that nobody waits for its answer any more.

        uvicorn tells it to the newest request alone, which need not be the one that is being answered.
        """
        self.pipeline.clear()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
