"""The upstream over HTTP: what it is, and one streamed generation at a time.

UpstreamError               this request did not end; the row may be tried again
├── TurnedAwayError         busy, starting or out of reach: try again for as long as it takes
├── RequestRefusedError     the request itself is wrong: the row ends with the upstream's message
└── MisconfiguredError      no request can work; names the setting
"""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from worker.engines.remote.config import RemoteConfig
from worker.engines.remote.retries import retry_after_s
from worker.engines.remote.wire import PATHS, Chunk, ChunkError, error_message, read_chunk

CONNECT_TIMEOUT_S = 5.0
# One event; more is no token stream.
MAX_LINE_BYTES = 4 * 1024 * 1024
_AWAY = (429, 502, 503)
_SETTINGS = {
    401: "remote_api_key: the upstream does not accept it",
    403: "remote_api_key: it does not allow this",
}


class UpstreamError(Exception):
    """``overloaded``: the upstream has more open requests than it can serve."""

    def __init__(
        self, message: str, *, overloaded: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.overloaded = overloaded
        self.retry_after_s = retry_after_s


class TurnedAwayError(UpstreamError):
    pass


class RequestRefusedError(UpstreamError):
    pass


class MisconfiguredError(UpstreamError):
    pass


@dataclass(frozen=True, slots=True)
class ServedModel:
    """``context_tokens`` is None where the upstream does not tell it."""

    name: str
    context_tokens: int | None


class Upstream:
    """Owns the connections. Made and used on one event loop; ``close`` it there, too."""

    def __init__(self, config: RemoteConfig) -> None:
        headers = {} if config.api_key is None else {"Authorization": f"Bearer {config.api_key}"}
        self._config = config
        self._client = httpx.AsyncClient(
            base_url=config.url.rstrip("/") + "/",
            headers=headers,
            timeout=httpx.Timeout(config.timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )
        self.place = str(self._client.base_url.copy_with(userinfo=b"")).rstrip("/")

    async def close(self) -> None:
        await self._client.aclose()

    async def served_models(self) -> list[ServedModel]:
        """The models that the upstream lists; empty if it lists none. Raises UpstreamError."""
        try:
            response = await self._client.get("models")
        except httpx.HTTPError as error:
            raise self._broken(error) from error
        if response.status_code == 404:
            return []
        if response.status_code != 200:
            raise self._error(response, response.content)
        try:
            return [
                ServedModel(str(model["id"]), model.get("max_model_len"))
                for model in orjson.loads(response.content)["data"]
            ]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise MisconfiguredError(
                f"remote_url: {self.place}/models does not answer as OpenAI's API does"
            ) from error

    async def generate(self, body: dict[str, Any]) -> AsyncGenerator[Chunk]:
        """Stream one generation, to its end. Close it to cancel.

        Raises UpstreamError. A stream that ends without a finish reason is one, too.
        """
        ended = False
        try:
            async with self._client.stream(
                "POST",
                PATHS[self._config.route],
                content=orjson.dumps(body),
                headers={"Content-Type": "application/json"},
            ) as response:
                if response.status_code != 200:
                    raise self._error(response, await response.aread())
                async with aclosing(_events(response)) as events:
                    async for event in events:
                        if event == b"[DONE]":
                            break
                        chunk = read_chunk(orjson.loads(event))
                        ended = ended or chunk.end is not None
                        yield chunk
        except httpx.HTTPError as error:
            if not ended:
                raise self._broken(error) from error
        except (ChunkError, orjson.JSONDecodeError) as error:
            message = str(error) if isinstance(error, ChunkError) else "an event is no JSON"
            raise UpstreamError(message) from error
        if not ended:
            raise UpstreamError("the stream was cut")

    def _broken(self, error: httpx.HTTPError) -> UpstreamError:
        kind = type(error).__name__
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return TurnedAwayError(f"remote_url: {self.place} cannot be reached ({kind})")
        if isinstance(error, httpx.TimeoutException):
            silence = f"nothing came for {self._config.timeout_s:g} s"
            return UpstreamError(silence, overloaded=True)
        return UpstreamError(f"the connection broke ({kind})")

    def _error(self, response: httpx.Response, content: bytes) -> UpstreamError:
        status = response.status_code
        if status in _SETTINGS:  # their text may repeat the key
            return MisconfiguredError(f"{_SETTINGS[status]} ({status} from {self.place})")
        try:
            message = error_message(orjson.loads(content))
        except orjson.JSONDecodeError:
            message = ""
        said = f"{status} {message}".strip()
        if status == 404 or 300 <= status < 400:
            return MisconfiguredError(
                f"remote_url or remote_model: {response.url.copy_with(userinfo=b'')} answers {said}"
            )
        after_s = retry_after_s(response.headers.get("Retry-After"), time.time())
        if status in _AWAY:
            return TurnedAwayError(said, overloaded=True, retry_after_s=after_s)
        if status >= 500 or status == 408:
            return UpstreamError(said, overloaded=True, retry_after_s=after_s)
        return RequestRefusedError(f"the upstream refuses the request: {said}")


async def _events(response: httpx.Response) -> AsyncGenerator[bytes]:
    """The ``data:`` of each server-sent event.

    Cut at newlines alone: httpx's own lines end at characters that JSON strings may hold.
    """
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
        if len(rest) > MAX_LINE_BYTES:
            raise ChunkError("an event is too long")
