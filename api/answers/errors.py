"""From errors to the problems that clients see.

`millpond.errors` owns the code and the status of each error; this module has the few that only HTTP has, and
is the one place where errors become responses. No content of a request is repeated.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from api.answers.problems import INTERNAL_PROBLEM, UNAVAILABLE_RETRY_S, Fault, Problem
from millpond.errors import (
    FilesFullError,
    InvalidRequestError,
    JobNotFoundError,
    LimitExceededError,
    MillpondError,
    QueueFullError,
    QueueUnavailableError,
    StorageUnavailableError,
    TenantFullError,
    TenantStorageFullError,
    UnknownBatchError,
    UnknownFileError,
)

# Listing more would delay every other request.
MAX_FAULTS_READ = 5_000
MAX_FIELD_CHARS = 100
MODEL_RETRY_S = 5
CHALLENGE = 'Bearer realm="millpond"'

_LIMITS = ("le", "lt", "ge", "gt", "max_length", "min_length")
# A check of the whole object names the field at the start of its message.
_NAMED_FIELD = re.compile(r"([a-z_]+): (.+)", re.DOTALL)

# The limit of the tenant that is passed.
_VIOLATED: dict[type[QueueFullError], tuple[str, ...]] = {
    TenantFullError: ("unfinished_jobs",),
    TenantStorageFullError: ("stored_bytes",),
}

log = structlog.get_logger("millpond.api")


class InvalidBodyError(MillpondError):
    """Fields of a body or parameters of a URL are invalid."""

    code = "invalid_request"
    http_status = 422

    def __init__(self, faults: list[Fault]) -> None:
        shown = "; ".join(f"{fault.field}: {fault.message}" for fault in faults[:3])
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        super().__init__(shown + more)
        self.faults = faults

    @classmethod
    def from_pydantic(cls, error: ValidationError) -> "InvalidBodyError":
        count = error.error_count()
        if count > MAX_FAULTS_READ:
            return cls([Fault("body", f"{count} things are wrong in it", MAX_FAULTS_READ)])
        return cls(list(_faults(error.errors(include_url=False, include_input=False))))

    @classmethod
    def from_parameters(cls, error: RequestValidationError) -> "InvalidBodyError":
        # The first part of each location says query, path or header.
        return cls(list(_faults({**e, "loc": tuple(e["loc"])[1:]} for e in error.errors())))


class InvalidJsonError(MillpondError):
    code = "invalid_json"
    http_status = 400

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.faults = [Fault("body", message)]


class UnsupportedMediaTypeError(MillpondError):
    code = "unsupported_media_type"
    http_status = 415

    def __init__(self, wanted: str = "application/json") -> None:
        super().__init__(f"send the body as {wanted}, with a Content-Type that says so")
        self.faults = [Fault("Content-Type", f"must be {wanted}")]


class BodyTooLargeError(MillpondError):
    code = "body_too_large"
    http_status = 413

    def __init__(self, limit: int, field: str = "body") -> None:
        super().__init__(f"the {field} is longer than {limit} bytes, the limit of this route")
        self.faults = [Fault(field, f"is longer than {limit} bytes", limit)]


class RangeNotSatisfiableError(MillpondError):
    """The range begins where the file ends, or behind it. A growing file may have it later."""

    code = "range_not_satisfiable"
    http_status = 416

    def __init__(self, size: int) -> None:
        super().__init__(f"Range: the file has {size} bytes")
        self.size = size


class UnauthenticatedError(MillpondError):
    """One answer for every kind of bad key, so that it does not reveal which keys exist."""

    code = "unauthenticated"
    http_status = 401

    def __init__(self) -> None:
        super().__init__("send an API key that is good: Authorization: Bearer mp_...")


class ForbiddenError(MillpondError):
    code = "forbidden"
    http_status = 403

    def __init__(self, scope: str) -> None:
        super().__init__(f"this key lacks the scope '{scope}', which this route needs")
        self.scope = scope


class PriorityForbiddenError(MillpondError):
    code = "priority_forbidden"
    http_status = 403

    def __init__(self, priority: str, allowed: Iterable[str]) -> None:
        super().__init__(
            f"priority: this key may not use '{priority}'; it may use {', '.join(allowed)}"
        )
        self.faults = [Fault("priority", f"this key may not use '{priority}'")]


class TooManyStreamsError(MillpondError):
    """Event streams and long polls of one key, on one API process."""

    code = "too_many_streams"
    http_status = 429
    policy = "open_streams"
    retry_after_s = 1

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} event streams and long polls of this key are open, its limit")


class ModelNotReadyError(MillpondError):
    """The tokenizer is not loaded yet, so no prompt can be checked."""

    code = "model_not_ready"
    http_status = 503

    def __init__(self) -> None:
        super().__init__("the model's files are not ready yet; a worker is still fetching them")


def problem_of(error: MillpondError) -> Problem:
    """The problem that a client sees. Internal errors show no details."""
    match error:
        case InvalidRequestError():
            faults = (Fault(error.field, error.message, error.limit),)
            return Problem(error.http_status, error.code, str(error), faults)
        case QueueFullError():
            return Problem(
                error.http_status,
                error.code,
                str(error),
                retry_after_s=error.retry_after_s,
                violated_policies=_VIOLATED.get(type(error), ()),
            )
        case LimitExceededError():
            return Problem(
                error.http_status,
                error.code,
                str(error),
                retry_after_s=error.retry_after_s,
                violated_policies=(error.name,),
            )
        case TooManyStreamsError():
            return Problem(
                error.http_status,
                error.code,
                str(error),
                retry_after_s=error.retry_after_s,
                violated_policies=(error.policy,),
            )
        case UnauthenticatedError():
            return Problem(401, error.code, str(error), challenge=CHALLENGE)
        case ForbiddenError():
            challenge = f'{CHALLENGE}, error="insufficient_scope", scope="{error.scope}"'
            return Problem(403, error.code, str(error), challenge=challenge)
        case QueueUnavailableError():
            detail = "the queue cannot be reached or cannot take jobs now; try again"
            return Problem(503, error.code, detail, retry_after_s=UNAVAILABLE_RETRY_S)
        case StorageUnavailableError():
            detail = "the storage of batch files cannot be reached now; try again"
            return Problem(503, error.code, detail, retry_after_s=UNAVAILABLE_RETRY_S)
        case UnknownFileError() | UnknownBatchError():
            fault = Fault(error.field, "is unknown")
            return Problem(404, error.code, str(error), (fault,))
        case FilesFullError():
            fault = Fault("file", "does not fit beside those that are stored", error.limit)
            return Problem(429, error.code, str(error), (fault,))
        case ModelNotReadyError():
            return Problem(503, error.code, str(error), retry_after_s=MODEL_RETRY_S)
        case JobNotFoundError():
            return Problem(404, error.code, "no such job: unknown, or its result has expired")
        case _ if error.http_status >= 500:
            return INTERNAL_PROBLEM
        case _:
            faults = tuple(getattr(error, "faults", ()))
            return Problem(error.http_status, error.code, str(error), faults)


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(MillpondError, _on_millpond_error)
    app.add_exception_handler(RequestValidationError, _on_bad_parameters)
    app.add_exception_handler(HTTPException, _on_http_error)


async def _on_millpond_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MillpondError)
    problem = problem_of(error)
    if problem.status >= 500:
        log.warning("request_failed", path=request.url.path, code=error.code, cause=str(error))
    return problem.response()


async def _on_bad_parameters(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problem_of(InvalidBodyError.from_parameters(error)).response()


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    match error.status_code:
        case 404:
            problem = Problem(404, "not_found", "there is nothing under this path")
        case 405:
            problem = Problem(405, "method_not_allowed", "this path does not take this method")
            return problem.response({"Allow": ", ".join(_methods(request))})
        case status:
            problem = Problem(status, f"http_{status}", error.detail or "")
    return problem.response(error.headers)


def _methods(request: Request) -> list[str]:
    """All methods of the resource at this path; the router only knows one at a time."""
    matching = [
        route
        for route in request.app.state.routes
        if route.matches(request.scope)[0] is not Match.NONE
    ]
    if not matching:  # served by FastAPI itself
        return ["GET", "HEAD"]
    # A literal path goes before one with a parameter that would match it.
    same = [route.methods for route in matching if route.path == matching[0].path]
    methods: set[str] = set().union(*same)
    return sorted(methods | ({"HEAD"} if "GET" in methods else set()))


def _faults(found: Iterable[Mapping[str, Any]]) -> Iterable[Fault]:
    for error in found:
        # Names of unknown fields come from the client and may contain lone surrogates.
        field = ".".join(map(str, error["loc"])).encode(errors="replace").decode()
        message = str(error["msg"]).removeprefix("Value error, ").replace(" after validation", "")
        if not field and (named := _NAMED_FIELD.fullmatch(message)):
            field, message = named.groups()
        context = error.get("ctx") or {}
        limit = next((context[name] for name in _LIMITS if name in context), None)
        yield Fault(field[:MAX_FIELD_CHARS] or "body", message, limit)
