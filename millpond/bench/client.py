"""A client of OpenAI's two routes that takes times, and afterwards asks for Millpond's receipts."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import aiohttp
import orjson

from millpond.bench.records import Answered
from millpond.bench.timed import BenchError, Timed
from millpond.bench.workloads import Question

JOB_ID_HEADER = "X-Job-Id"
# Silence on a connection after which a request has failed.
SILENCE_S = 300.0
RECEIPTS_AT_ONCE = 16
_MAX_ERROR_CHARS = 200


class BenchClient:
    """Of one server, by its base URL with ``/v1``. Connections are kept and not limited."""

    def __init__(
        self, url: str, session: aiohttp.ClientSession, model: str, *, stream: bool
    ) -> None:
        self.url = url
        self.model = model
        self._stream = stream
        self._session = session

    async def send(self, question: Question, due_s: float | None = None) -> Timed:
        """Ask, and read the answer to its end. It never raises for what the server does.

        ``due_s`` is when it was to be sent, if that is what counts.
        """
        fields = {**question.body, "model": self.model}
        if self._stream:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        body = orjson.dumps(fields)
        timed = Timed(time.perf_counter() if due_s is None else due_s)
        path = question.route.removeprefix("/v1")
        try:
            async with self._session.post(self.url + path, data=body) as response:
                timed.job_id = response.headers.get(JOB_ID_HEADER)
                if response.status != 200:
                    said = (await response.text())[:_MAX_ERROR_CHARS]
                    timed.error = f"{response.status}: {said}"
                    return timed
                if self._stream:
                    await _read_stream(response.content, timed)
                else:
                    _read_whole(await response.read(), timed)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            timed.error = f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARS]
        if timed.error is None and timed.last_s is None:
            timed.error = "no text came"
        return timed

    async def with_receipts(self, requests: Sequence[Timed], began_s: float) -> list[Answered]:
        """The requests as records, each with what its job's receipt tells."""
        turn = asyncio.Semaphore(RECEIPTS_AT_ONCE)

        async def complete(timed: Timed) -> Answered:
            answered = timed.answered(began_s)
            if timed.job_id is None or timed.error is not None:
                return answered
            async with turn:
                receipt = await self._receipt(timed.job_id)
            return answered.model_copy(update=receipt)

        return list(await asyncio.gather(*map(complete, requests)))

    async def _receipt(self, job_id: str) -> dict[str, Any]:
        try:
            async with self._session.get(f"{self.url}/jobs/{job_id}") as response:
                receipt = orjson.loads(await response.read())["result"]["receipt"]
                return {
                    "queue_wait_ms": receipt["queue_wait_ms"],
                    "decoding_ms": receipt["run_ms"] - receipt["first_token_ms"],
                    "batch_rows": receipt["batch_rows"],
                    "window_jobs": receipt["window_jobs"],
                }
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
            return {}

    async def served(self) -> dict[str, Any]:
        """What ``/v1/models`` tells of this model, and what computes, where this client may look at the
        queue."""
        for entry in await _models(self._session, self.url):
            if entry.get("id") == self.model:
                return {**entry, "backend": await self._backend()}
        return {}

    async def _backend(self) -> str | None:
        place = f"{self.url}/queue"
        try:
            async with self._session.get(place, params={"model": self.model}) as response:
                return str(orjson.loads(await response.read())["workers"][0]["backend"])
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError):
            return None


def _read_whole(answer: bytes, timed: Timed) -> None:
    """Raises ValueError for an answer that is not JSON."""
    timed.last_s = time.perf_counter()
    timed.usage = orjson.loads(answer).get("usage")


async def _read_stream(content: aiohttp.StreamReader, timed: Timed) -> None:
    """The events of a stream. Raises ValueError for a line that is not JSON."""
    async for line in content:
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        if not line.startswith(b"data:") or not data:
            continue
        now_s = time.perf_counter()
        event = orjson.loads(data)
        if event.get("error") is not None:
            timed.error = str(event["error"])[:_MAX_ERROR_CHARS]
        timed.usage = event.get("usage") or timed.usage
        if _has_text(event):
            timed.first_s = now_s if timed.first_s is None else timed.first_s
            timed.last_s = now_s
            timed.pieces += 1
    timed.error = timed.error or "the stream ended early"


def _has_text(event: Mapping[str, Any]) -> bool:
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or choice
        if delta.get("content") or delta.get("text") or delta.get("reasoning_content"):
            return True
    return False


async def _models(session: aiohttp.ClientSession, url: str) -> list[dict[str, Any]]:
    """Raises BenchError if there is no such list."""
    try:
        async with session.get(f"{url}/models") as response:
            if response.status != 200:
                said = (await response.text())[:_MAX_ERROR_CHARS]
                raise BenchError(f"{url}/models answers {response.status}: {said}")
            return list(orjson.loads(await response.read())["data"])
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{url}: no OpenAI-compatible server answers there ({error})") from error


@contextlib.asynccontextmanager
async def bench_client(
    url: str, model: str | None, api_key: str | None, *, stream: bool
) -> AsyncIterator[BenchClient]:
    """A client for this model, or for the first that the server lists. Raises BenchError."""
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30.0, sock_read=SILENCE_S)
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        models = [entry.get("id") for entry in await _models(session, url)]
        chosen = models[0] if model is None and models else model
        if chosen not in models:
            raise BenchError(f"{url} serves {models}, not {chosen!r}")
        yield BenchClient(url, session, str(chosen), stream=stream)
