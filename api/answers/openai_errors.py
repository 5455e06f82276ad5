"""Errors in OpenAI's format, with the statuses by which its clients distinguish them."""

from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import orjson
import structlog
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from api.answers.errors import InvalidBodyError, problem_of
from api.answers.problems import Problem
from millpond.errors import (
    MillpondError,
)
from millpond.messages import JobError, JobResult
from millpond.openai.responses import ChangedTextError

log = structlog.get_logger("millpond.api")

# Codes for which OpenAI's API has another status or name.
_STATUS_AND_CODE = {
    "idempotency_conflict": (409, "idempotency_conflict"),
    "invalid_request": (400, "invalid_request"),
    "prompt_too_long": (400, "context_length_exceeded"),
    "unauthenticated": (401, "invalid_api_key"),
    "unknown_model": (404, "model_not_found"),
    "webhook_forbidden": (400, "webhook_forbidden"),
}
# Failures that the request itself caused; others are the service's.
_CLIENTS_FAULTS = {"invalid_request", "prompt_too_long", "does_not_fit", "cancelled"}


class JobFailedError(MillpondError):
    """The job ended without a result to answer with."""

    def __init__(self, result: JobResult) -> None:
        error = result.error or JobError(code=str(result.status), message="the job has no text")
        super().__init__(error.message)
        self.job_code = error.code

    @property
    def status(self) -> int:
        if self.job_code == "deadline_exceeded":
            return 504
        return 400 if self.job_code in _CLIENTS_FAULTS else 500


class OpenAIRoute(APIRoute):
    """A route whose errors are OpenAI's: ``{"error": {"message", "type", "param", "code"}}``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                return error_response(InvalidBodyError.from_parameters(error))
            except MillpondError as error:
                return error_response(error)

        return handled


def error_response(error: MillpondError) -> Response:
    problem = problem_of(error)
    status, body = _status_and_body(error, problem)
    if status >= 500:
        log.warning("request_failed", code=error.code, cause=str(error))
    headers = {}
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(problem.retry_after_s)
    if problem.challenge is not None:
        headers["WWW-Authenticate"] = problem.challenge
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


def error_of(error: MillpondError) -> dict[str, Any]:
    """The body only, for a stream whose status has been sent already."""
    return _status_and_body(error, problem_of(error))[1]


def openai_shape(problem: Problem) -> tuple[int, dict[str, Any]]:
    """The status and the body of the answer to a problem."""
    status, code = _STATUS_AND_CODE.get(problem.code, (problem.status, problem.code))
    return status, {"error": replace(problem, status=status, code=code).openai_error()}


def _status_and_body(error: MillpondError, problem: Problem) -> tuple[int, dict[str, Any]]:
    match error:
        case JobFailedError():
            problem = Problem(error.status, error.job_code, str(error))
        case ChangedTextError():
            problem = Problem(500, error.code, str(error))
        case _:
            return openai_shape(problem)
    return problem.status, {"error": problem.openai_error()}
