"""The body of an error: RFC 9457 ``application/problem+json``, with OpenAI's ``error``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.responses import Response

PROBLEM_TYPE = "urn:millpond:problem:"
PROBLEM_MEDIA_TYPE = "application/problem+json"
MAX_FAULTS_SHOWN = 20
UNAVAILABLE_RETRY_S = 2

OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: where, what, and the limit that was exceeded, if any."""

    field: str
    message: str
    limit: float | None = None

    def as_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = {"field": self.field, "message": self.message}
        if self.limit is not None:
            found["limit"] = self.limit
        return found


@dataclass(frozen=True, slots=True)
class Problem:
    """The body of the answer to one error."""

    status: int
    code: str
    detail: str
    faults: tuple[Fault, ...] = ()
    retry_after_s: int | None = None
    violated_policies: tuple[str, ...] = ()
    challenge: str | None = None

    def as_dict(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "type": PROBLEM_TYPE + self.code,
            "title": self.code.replace("_", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        if self.faults:
            body["errors"] = [fault.as_dict() for fault in self.faults[:MAX_FAULTS_SHOWN]]
        if self.retry_after_s is not None:
            body["retry_after_s"] = self.retry_after_s
        if self.violated_policies:
            body["violated-policies"] = list(self.violated_policies)
        return body

    def openai_error(self) -> dict[str, Any]:
        """The same as the ``error`` of OpenAI's API, which its clients show."""
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "message": self.detail,
            "type": OPENAI_TYPES.get(self.status, default),
            "param": self.faults[0].field if self.faults else None,
            "code": self.code,
        }

    def response(self, headers: Mapping[str, str] | None = None) -> Response:
        extra = dict(headers or {})
        if self.retry_after_s is not None:
            extra["Retry-After"] = str(self.retry_after_s)
        if self.challenge is not None:
            extra["WWW-Authenticate"] = self.challenge
        body = orjson.dumps(self.as_dict() | {"error": self.openai_error()})
        return Response(body, self.status, extra, media_type=PROBLEM_MEDIA_TYPE)


INTERNAL_PROBLEM = Problem(500, "internal_error", "something went wrong on this side")
STOPPING_PROBLEM = Problem(
    503, "stopping", "this process is stopping; try again", retry_after_s=UNAVAILABLE_RETRY_S
)
