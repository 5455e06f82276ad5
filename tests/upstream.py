"""An OpenAI-compatible server for tests: deterministic text, and failures by script.

Its model writes ASCII by hashing all tokens before, as a language model would: a prompt that ends
with what was generated goes on as the row would have. Tokens are `ByteTokenizer`'s.
"""

import asyncio
import hashlib
import json
import threading
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from millpond.models.tokenization import ByteTokenizer

_LETTERS = b"abcdefghijklmnopqrstuvwxyz ,."


@dataclass(frozen=True)
class Behaviour:
    """How one request is answered. The default is a whole, proper stream.

    ``status`` other than 200 answers with ``error`` at once. After ``cut_after`` tokens the
    connection breaks; after ``end_after`` the stream ends without a finish reason; after
    ``hang_after`` nothing more comes; after ``junk_after`` an event is no JSON; after
    ``error_after`` it is an error.
    ``other_text`` generates as if the prompt were another. ``deltas`` are sent instead of a text, as those
    of a chat.
    """

    status: int = 200
    error: str = "no"
    headers: dict[str, str] = field(default_factory=dict)
    token_delay_s: float = 0.0
    cut_after: int | None = None
    end_after: int | None = None
    hang_after: int | None = None
    junk_after: int | None = None
    error_after: int | None = None
    other_text: bool = False
    deltas: Sequence[dict[str, str]] = ()


NORMAL = Behaviour()


class Upstream:
    """Runs in a thread of its own; a context manager. ``script`` is used up request by request.

    ``token_ids`` tells token ids as vLLM does. ``max_open`` answers 429 above it. ``api_key``
    asks for one. ``token_delay_s`` is the pace of requests beyond the script. ``model`` is the one
    that is listed.
    """

    def __init__(
        self,
        *,
        token_ids: bool = True,
        max_open: int | None = None,
        api_key: str | None = None,
        token_delay_s: float = 0.0,
        model: str | None = None,
        port: int = 0,
    ) -> None:
        self.token_ids = token_ids
        self.model = model
        self.max_open = max_open
        self.api_key = api_key
        self.token_delay_s = token_delay_s
        self.script: deque[Behaviour] = deque()
        self.bodies: list[dict[str, Any]] = []
        self.num_open = 0
        self.most_open = 0
        self.num_hung_up = 0
        self.port = port
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> "Upstream":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to listen, at the same port as before if it has been started before."""
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)))
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        """Break all connections and close the port."""
        if self._thread is None:
            return
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._thread = None

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._connection(reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)

        server = await asyncio.start_server(connected, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        await self._stop.wait()
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await _read_head(reader):
                request_line, headers = head
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                answer = asyncio.ensure_future(self._answer(request_line, headers, body, writer))
                gone = asyncio.ensure_future(_until_gone(reader))
                await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
                if not answer.done():
                    self.num_hung_up += 1
                for task in (answer, gone):
                    task.cancel()
                await asyncio.gather(answer, gone, return_exceptions=True)
                if answer.cancelled() or not answer.result():
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.transport.abort()

    async def _answer(
        self, line: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        """False: the connection is to be broken."""
        if line.startswith("GET /health "):
            _send(writer, 200, {})
            return True
        if self.api_key is not None and headers.get("authorization") != f"Bearer {self.api_key}":
            _send(writer, 401, {"error": f"not {headers.get('authorization')}"})
            return True
        if line.startswith("GET /v1/models "):
            ids = ("tiny", "tiny-sql") if self.model is None else (self.model,)
            served = [{"id": id, "max_model_len": 100_000} for id in ids]
            _send(writer, 200, {"data": served})
            return True
        if not line.startswith(("POST /v1/completions ", "POST /v1/chat/completions ")):
            _send(writer, 404, {"error": {"message": f"no route {line}"}})
            return True
        request = json.loads(body)
        self.bodies.append(request)
        behaviour = (
            self.script.popleft() if self.script else Behaviour(token_delay_s=self.token_delay_s)
        )
        if self.max_open is not None and self.num_open >= self.max_open:
            behaviour = Behaviour(status=429, error="too many")
        if behaviour.status != 200:
            _send(
                writer, behaviour.status, {"error": {"message": behaviour.error}}, behaviour.headers
            )
            return True
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            return await self._stream(request, behaviour, writer)
        finally:
            self.num_open -= 1

    async def _stream(
        self, request: dict[str, Any], how: Behaviour, writer: asyncio.StreamWriter
    ) -> bool:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        if how.deltas:
            for i, delta in enumerate(how.deltas, 1):
                reason = "stop" if i == len(how.deltas) else None
                choice = {"index": 0, "delta": delta, "finish_reason": reason}
                _event(writer, json.dumps({"choices": [choice]}).encode())
            _event(writer, b"[DONE]")
            writer.write(b"0\r\n\r\n")
            return True
        prompt = _prompt(request)
        generated = _generate(request, prompt, other=how.other_text)
        for written, (token_ids, text, reason) in enumerate(generated):
            if written == how.cut_after:
                return False
            if written == how.end_after:
                break
            if written == how.hang_after:
                await asyncio.Event().wait()
            if written == how.junk_after:
                _event(writer, b"{not json")
            if written == how.error_after:
                _event(writer, json.dumps({"error": {"message": "broke inside"}}).encode())
            await asyncio.sleep(how.token_delay_s)
            choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
            if "messages" in request:
                choice["delta"] = {"content": text}
            else:
                choice["text"] = text
            if self.token_ids and request.get("return_token_ids"):
                choice["token_ids"] = token_ids
                if request.get("logprobs") is not None:
                    choice["logprobs"] = _logprobs(token_ids[0], request["logprobs"])
            _event(writer, json.dumps({"choices": [choice]}, ensure_ascii=False).encode())
            await writer.drain()
        else:
            if (request.get("stream_options") or {}).get("include_usage"):
                usage = {"prompt_tokens": len(prompt), "completion_tokens": written + 1}
                _event(writer, json.dumps({"choices": [], "usage": usage}).encode())
            _event(writer, b"[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


def text_for(body: dict[str, Any]) -> str:
    """What an undisturbed answer to this request says."""
    return "".join(piece for _, piece, _ in _generate(body, _prompt(body), other=False))


def _generate(
    request: dict[str, Any], prompt: Sequence[int], *, other: bool
) -> Iterator[tuple[list[int], str, str | None]]:
    """Token ids, text and finish reason, token by token, as vLLM would by the same parameters."""
    seed = request["seed"] if request.get("temperature") else 0
    ends = set(request.get("stop_token_ids") or ())
    if not request.get("ignore_eos"):
        ends.add(ByteTokenizer.EOS)
    forced = [int(t) for t, bias in (request.get("logit_bias") or {}).items() if bias >= 100]
    tokens, text = [seed, int(other), *prompt], ""
    for position in range(1, request["max_tokens"] + 1):
        draws = hashlib.shake_256(array("q", tokens).tobytes()).digest(64)
        early = position < request.get("min_tokens", 0)
        choices = [ByteTokenizer.EOS if d < 6 else _LETTERS[d % len(_LETTERS)] for d in draws]
        token = next(c for c in [*forced, *choices] if not (early and c in ends))
        tokens.append(token)
        piece = ByteTokenizer().decode([token])
        if token in ends:
            yield [token], "", "stop"
            return
        text += piece
        if any(stop in text for stop in request.get("stop") or ()):
            yield [token], "", "stop"
            return
        yield [token], piece, "length" if position == request["max_tokens"] else None


def _logprobs(token_id: int, count: int) -> dict[str, Any]:
    """As vLLM with ``return_tokens_as_token_ids``: the chosen token is among the top in any case."""
    ids = [token_id, *((token_id + n) % ByteTokenizer.EOS for n in range(1, count))]
    top = {f"token_id:{id}": -0.7 * (n + 1) for n, id in enumerate(ids)}
    return {
        "tokens": [f"token_id:{token_id}"],
        "token_logprobs": [-0.7],
        "top_logprobs": [dict(reversed(top.items()))],
    }


def _prompt(request: dict[str, Any]) -> list[int]:
    if "messages" in request:
        return list("".join(m["role"] + m["content"] for m in request["messages"]).encode())
    return list(request["prompt"])


async def _read_head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]] | None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = await reader.readline()
        if not line:
            return None
        head += line
    first, *rest = head.decode().strip().split("\r\n")
    pairs = [line.split(":", 1) for line in rest]
    return first, {name.lower(): value.strip() for name, value in pairs}


async def _until_gone(reader: asyncio.StreamReader) -> None:
    """The client sends nothing while it is answered; what ends this is its going away."""
    while not reader.at_eof() and reader.exception() is None:
        await asyncio.sleep(0.002)


def _send(
    writer: asyncio.StreamWriter, status: int, body: Any, headers: dict[str, str] | None = None
) -> None:
    content = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join([*lines, "", ""]).encode() + content)


def _event(writer: asyncio.StreamWriter, data: bytes) -> None:
    event = b"data: " + data + b"\n\n"
    writer.write(b"%x\r\n%s\r\n" % (len(event), event))
