"""Jobs that are answered in their own request: awaited or streamed, cancelled when the client disconnects."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
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
from api.answers.sent_texts import SentTexts
from api.directory import ServedQueue
from api.http.hangup import until_hangup
from api.services import Services
from millpond.errors import MillpondError
from millpond.messages import EventType, JobEvent, JobResult, JobStatus
from millpond.openai.responses import Chunks, completion

# A wait is renewed after this; only the client's timeout ends it.
WAIT_S = 60.0
DONE = b"data: [DONE]\n\n"

log = structlog.get_logger("millpond.api")


@dataclass(frozen=True, slots=True)
class AnsweredJobs:
    """The accepted jobs of one request, one for each prompt, and the form of their answer.

    ``n`` texts for each prompt, by the model of the queue. They are cancelled when their client disconnects
    unless they are ``kept``.
    """

    served: ServedQueue
    ids: Sequence[str]
    tenant: str
    n: int
    chat: bool
    kept: bool
    created_s: int
    opened: OpenAnswer

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Job-Id": ", ".join(self.ids)}


async def answer_whole(api: Services, jobs: AnsweredJobs, receive: Receive) -> Response:
    """The completion, once all jobs have ended. Raises JobFailedError."""
    results = []
    async with _cancelled_unless_ended(api, jobs) as running:
        for id in jobs.ids:
            result = await until_hangup(
                _result(jobs, id), receive, api.closing, jobs.opened.revoked
            )
            if jobs.opened.revoked.is_set():
                raise UnauthenticatedError
            if result is None:
                return STOPPING_PROBLEM.response(jobs.headers)
            running.discard(id)
            if result.status is not JobStatus.SUCCEEDED:
                raise JobFailedError(result)
            results.append(result)
    body = completion(results, chat=jobs.chat, model=jobs.served.model, created_s=jobs.created_s)
    return Response(orjson.dumps(body), 200, jobs.headers, media_type="application/json")


async def _result(jobs: AnsweredJobs, id: str) -> JobResult:
    while True:
        view = await jobs.served.results.wait(id, WAIT_S, tenant=jobs.tenant)
        if view.result is not None:
            return view.result


class CompletionStream(Response):
    """The answer in chunks, as server-sent events. A failure in between is sent as an event with an error."""

    media_type = "text/event-stream"

    def __init__(
        self,
        api: Services,
        jobs: AnsweredJobs,
        *,
        include_usage: bool,
        prompt_tokens: Sequence[int] | None,
    ) -> None:
        """``prompt_tokens`` of each job, if every chunk is to have its usage."""
        # No length is known; proxies are asked not to hold anything back.
        super().__init__(
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **jobs.headers}
        )
        del self.headers["content-length"]
        self._api = api
        self._jobs = jobs
        self._include_usage = include_usage
        self._prompt_tokens = prompt_tokens

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = self.raw_headers
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        async with _cancelled_unless_ended(self._api, self._jobs) as running:
            sending = self._send_all(send, running)
            with self._jobs.opened as opened:
                await until_hangup(sending, receive, self._api.closing, opened.revoked)
        with contextlib.suppress(OSError):  # the client is gone
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_all(self, send: Send, running: set[str]) -> None:
        jobs = self._jobs
        shapes = Chunks(
            jobs.ids[0], chat=jobs.chat, model=jobs.served.model, created_s=jobs.created_s
        )
        sent = SentTexts(shapes, jobs.n, len(jobs.ids), self._prompt_tokens)
        try:
            if jobs.chat:
                for index in range(jobs.n):
                    await _send(send, _event(sent.role(index)))
            async with asyncio.TaskGroup() as group:
                following = [
                    group.create_task(self._follow(send, sent, place, running))
                    for place in range(len(jobs.ids))
                ]
            if self._include_usage:
                await _send(send, _event(shapes.usage([task.result() for task in following])))
            await _send(send, DONE)
        except* MillpondError as errors:
            error = errors.exceptions[0]
            assert isinstance(error, MillpondError)
            log.warning("completion_stream_broken", jobs=list(jobs.ids), code=error.code)
            await _send(send, _event(error_of(error)))
        except* OSError:
            log.debug("client_left")

    async def _follow(
        self, send: Send, sent: SentTexts, place: int, running: set[str]
    ) -> JobResult:
        """Send the texts of one job as they come. Raises JobFailedError, ChangedTextError."""
        jobs, id, first = self._jobs, self._jobs.ids[place], self._jobs.n * place
        events = jobs.served.results.subscribe(id, tenant=jobs.tenant)
        async with contextlib.aclosing(cast(AsyncGenerator[JobEvent, None], events)) as following:
            async for event in following:
                for shape in sent.next_part(event, first):
                    await _send(send, _event(shape))
                if event.type is EventType.FINISHED:
                    assert event.result is not None
                    running.discard(id)
                    if event.result.status is not JobStatus.SUCCEEDED:
                        raise JobFailedError(event.result)
                    for shape in sent.last_parts(event.result, first):
                        await _send(send, _event(shape))
                    return event.result
        raise AssertionError("events end with the result")


@contextlib.asynccontextmanager
async def _cancelled_unless_ended(api: Services, jobs: AnsweredJobs) -> AsyncIterator[set[str]]:
    """Cancels the jobs that the block leaves in the set: without the request nobody reads their results."""
    running = set(jobs.ids)
    try:
        yield running
    finally:
        for id in () if jobs.kept else running:
            with contextlib.suppress(MillpondError):
                await jobs.served.queue.cancel(id, tenant=jobs.tenant)
                log.info("cancelled_with_its_request", job=id)


async def _send(send: Send, chunk: bytes) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})


def _event(shape: dict[str, Any]) -> bytes:
    return b"data: %s\n\n" % orjson.dumps(shape)
