"""Jobs that are answered in their own request: awaited or streamed, cancelled when the client disconnects."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, cast

import orjson
import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.access.open_answers import OpenAnswer
from api.answers.errors import UnauthenticatedError
from api.answers.openai_errors import JobFailedError, error_of
from api.answers.problems import STOPPING_PROBLEM
from api.directory import ServedQueue
from api.http.hangup import until_hangup
from api.services import Services
from millpond.errors import MillpondError
from millpond.messages import EventType, JobEvent, JobResult, JobStatus
from millpond.openai.responses import Chunks, StreamedTexts, choices_of, completion
from millpond.queue.results import JobView

# A wait is renewed after this; only the client's timeout ends it.
WAIT_S = 60.0
DONE = b"data: [DONE]\n\n"

log = structlog.get_logger("millpond.api")


@dataclass(frozen=True, slots=True)
class AnsweredJob:
    """An accepted job and the form of its answer: ``n`` texts by the model of its queue."""

    served: ServedQueue
    id: str
    tenant: str
    n: int
    chat: bool
    created_s: int
    opened: OpenAnswer

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Job-Id": self.id}


async def answer_whole(api: Services, job: AnsweredJob, receive: Receive) -> Response:
    """The completion, once the job has ended. Raises JobFailedError."""
    async with _cancelled_unless_ended(api, job) as ended:
        view: JobView | None
        while True:
            waiting = job.served.results.wait(job.id, WAIT_S, tenant=job.tenant)
            view = await until_hangup(waiting, receive, api.closing, job.opened.revoked)
            if job.opened.revoked.is_set():
                raise UnauthenticatedError
            if view is None:
                return STOPPING_PROBLEM.response(job.headers)
            if view.result is not None:
                break
        ended.set()
    if view.result.status is not JobStatus.SUCCEEDED:
        raise JobFailedError(view.result)
    body = completion(view.result, chat=job.chat, model=job.served.model, created_s=job.created_s)
    return Response(orjson.dumps(body), 200, job.headers, media_type="application/json")


class CompletionStream(Response):
    """The answer in chunks, as server-sent events. A failure in between is sent as an event with an error."""

    media_type = "text/event-stream"

    def __init__(self, api: Services, job: AnsweredJob, *, include_usage: bool) -> None:
        # No length is known; proxies are asked not to hold anything back.
        super().__init__(
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **job.headers}
        )
        del self.headers["content-length"]
        self._api = api
        self._job = job
        self._include_usage = include_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        async with _cancelled_unless_ended(self._api, self._job) as ended:
            sending = self._send_all(send, ended)
            with self._job.opened as opened:
                await until_hangup(sending, receive, self._api.closing, opened.revoked)
        with contextlib.suppress(OSError):  # the client is gone
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send, ended: "_Ended") -> None:
        try:
            async with contextlib.aclosing(self._chunks(ended)) as chunks:
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except MillpondError as error:
            log.warning("completion_stream_broken", job=self._job.id, code=error.code)
            data = _event(error_of(error))
            await send({"type": "http.response.body", "body": data, "more_body": True})
        except OSError:
            log.debug("client_left")

    async def _chunks(self, ended: "_Ended") -> AsyncGenerator[bytes, None]:
        job, texts = self._job, StreamedTexts(self._job.n)
        shapes = Chunks(job.id, chat=job.chat, model=job.served.model, created_s=job.created_s)
        if job.chat:
            for index in range(job.n):
                yield _event(shapes.role(index))
        events = job.served.results.subscribe(job.id, tenant=job.tenant)
        async with contextlib.aclosing(cast(AsyncGenerator[JobEvent, None], events)) as following:
            async for event in following:
                if event.type is EventType.DELTA:
                    index = event.index or 0
                    part = texts.new_part(index, event.offset, event.text)
                    if part:
                        yield _event(shapes.text(index, part))
                elif event.type is EventType.FINISHED:
                    assert event.result is not None
                    ended.set()
                    for shape in self._last(shapes, texts, event.result):
                        yield _event(shape)
                    yield DONE

    def _last(
        self, shapes: Chunks, texts: StreamedTexts, result: JobResult
    ) -> Iterator[dict[str, Any]]:
        """The rest to send once the job has ended. Raises JobFailedError, ChangedTextError."""
        if result.status is not JobStatus.SUCCEEDED:
            raise JobFailedError(result)
        for choice in choices_of(result):
            rest = texts.rest(choice)
            if rest:
                yield shapes.text(choice.index, rest)
            yield shapes.end(choice)
        if self._include_usage and result.usage is not None:
            yield shapes.usage(result.usage)


class _Ended:
    """Whether a job has been seen to end."""

    def __init__(self) -> None:
        self.seen = False

    def set(self) -> None:
        self.seen = True


@contextlib.asynccontextmanager
async def _cancelled_unless_ended(api: Services, job: AnsweredJob) -> AsyncIterator[_Ended]:
    """Cancels the job if the block ends first: nobody will read its result without the request."""
    ended = _Ended()
    try:
        yield ended
    finally:
        if not ended.seen:
            with contextlib.suppress(MillpondError):
                await job.served.queue.cancel(job.id, tenant=job.tenant)
                log.info("cancelled_with_its_request", job=job.id)


def _event(shape: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % orjson.dumps(shape)
