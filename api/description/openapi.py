"""The OpenAPI file: what FastAPI derives, the bodies that are parsed by hand, the problems."""

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from api.answers.openai_errors import openai_shape
from api.answers.problems import PROBLEM_MEDIA_TYPE, Fault, Problem
from api.answers.schemas import OpenAIErrorBody, ProblemBody
from api.requests.batches import BatchRequest
from api.requests.bodies import MAX_BULK_JOBS
from millpond.messages import JobRequest
from millpond.openai.requests import ChatRequest, CompletionRequest

REF = "#/components/schemas/{model}"

TITLE = "Millpond"
DESCRIPTION = """
A durable queue in front of a batching LLM worker. `POST /v1/jobs` answers at once with an id; poll
it, long-poll it with `?wait=`, follow it live under `/events`, or listen on its Redis channel.

Errors are RFC 9457 problems with a stable `code`; a 422 names each field and its limit. Their `error` is
what OpenAI's clients look for. Every GET has a HEAD. What never gets to a route is refused with 400, 408,
414, 421, 431 or 503.
"""

_FIELD_PROBLEM = {
    "detail": "max_tokens: Input should be less than or equal to 131072",
    "errors": [
        {
            "field": "max_tokens",
            "message": "Input should be less than or equal to 131072",
            "limit": 131072,
        }
    ],
}
# One example for each code that a route may answer.
_EXAMPLES: dict[str, tuple[int, dict[str, Any]]] = {
    "unauthenticated": (
        401,
        {"detail": "send an API key that is good: Authorization: Bearer mp_..."},
    ),
    "forbidden": (403, {"detail": "this key lacks the scope 'submit', which this route needs"}),
    "invalid_json": (400, {"detail": "Invalid JSON: EOF while parsing a value at line 1 column 0"}),
    "job_not_found": (404, {"detail": "no such job: unknown, or its result has expired"}),
    "body_too_large": (
        413,
        {"detail": "the body is longer than 2097152 bytes, the limit of this route"},
    ),
    "unsupported_media_type": (
        415,
        {"detail": "send the body as application/json, with a Content-Type that says so"},
    ),
    "invalid_request": (422, _FIELD_PROBLEM),
    "prompt_too_long": (
        422,
        {
            "detail": "prompt: 5120 tokens, the limit is 4096; shorten it or set truncate",
            "errors": [{"field": "prompt", "message": "5120 tokens", "limit": 4096}],
        },
    ),
    "unknown_model": (
        422,
        {
            "detail": "model: 'gpt-9' is not served here; smollm2-135m is",
            "errors": [{"field": "model", "message": "'gpt-9' is not served here"}],
        },
    ),
    "idempotency_conflict": (
        422,
        {"detail": "this Idempotency-Key or job id was already used for a different request"},
    ),
    "queue_full": (
        429,
        {"detail": "the queue holds 100000 jobs, its limit is 100000", "retry_after_s": 12},
    ),
    "tenant_full": (
        429,
        {
            "detail": "the tenant has 500 unfinished jobs, the limit of its key is 500",
            "retry_after_s": 12,
            "violated-policies": ["unfinished_jobs"],
        },
    ),
    "tenant_storage_full": (
        429,
        {
            "detail": "1,073,700,000 bytes are stored for the tenant, requests and results together, "
            "and its limit is 1,073,741,824",
            "retry_after_s": 600,
            "violated-policies": ["stored_bytes"],
        },
    ),
    "limit_exceeded": (
        429,
        {
            "detail": "this key may spend 600 requests a minute; wait 3 s",
            "retry_after_s": 3,
            "violated-policies": ["requests"],
        },
    ),
    "priority_forbidden": (
        403,
        {
            "detail": "priority: this key may not use 'interactive'; it may use normal, batch",
            "errors": [{"field": "priority", "message": "this key may not use 'interactive'"}],
        },
    ),
    "too_many_streams": (
        429,
        {
            "detail": "1000 event streams and long polls of this key are open, its limit",
            "retry_after_s": 1,
            "violated-policies": ["open_streams"],
        },
    ),
    "file_not_found": (
        404,
        {"detail": "file_id: no file 'file-1': the id is unknown, or it was deleted"},
    ),
    "range_not_satisfiable": (416, {"detail": "Range: the file has 5120 bytes"}),
    "file_in_use": (
        409,
        {
            "detail": "the batch that writes file-5f0c3a9be1d24786a0c1b2d3 still runs; cancel it first"
        },
    ),
    "batch_not_found": (
        404,
        {"detail": "batch_id: no batch 'batch_1': the id is unknown, or it is long over"},
    ),
    "batch_ended": (
        409,
        {"detail": "batch_0d8e4c1f2a3b4c5d6e7f8091 cannot be cancelled: it is completed"},
    ),
    "tenant_files_full": (
        429,
        {
            "detail": "file: 21,474,836,400 bytes of uploaded files are stored for the tenant, and its "
            "limit is 21,474,836,480; delete some"
        },
    ),
    "storage_unavailable": (
        503,
        {
            "detail": "the storage of batch files cannot be reached now; try again",
            "retry_after_s": 2,
        },
    ),
    "queue_unavailable": (
        503,
        {"detail": "the queue cannot be reached or cannot take jobs now", "retry_after_s": 2},
    ),
    "model_not_ready": (503, {"detail": "the model's files are not ready yet", "retry_after_s": 5}),
}

# What every route may answer that needs a key.
KEY_PROBLEMS = ("unauthenticated", "forbidden", "limit_exceeded", "queue_unavailable")

SUBMIT_PROBLEMS = (
    "invalid_json",
    "body_too_large",
    "unsupported_media_type",
    "invalid_request",
    "prompt_too_long",
    "unknown_model",
    "idempotency_conflict",
    "queue_full",
    "tenant_full",
    "tenant_storage_full",
    "limit_exceeded",
    "priority_forbidden",
    "queue_unavailable",
    "model_not_ready",
)


def problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """What a route's ``responses`` say of these errors, grouped by status, with an example each."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, fields = _EXAMPLES[code]
        title = code.replace("_", " ").capitalize()
        faults = tuple(Fault(**fault) for fault in fields.get("errors", ()))
        problem = Problem(status, code, fields["detail"], faults)
        example = problem.as_dict() | fields | {"error": problem.openai_error()}
        entry = by_status.setdefault(status, _empty_problem(status))
        entry["description"] = f"{entry['description']}, {title}".lstrip(", ")
        content = entry["content"][PROBLEM_MEDIA_TYPE]
        content["examples"][code] = {"summary": title, "value": example}
    return by_status


def openai_problems(*codes: str) -> dict[int | str, dict[str, Any]]:
    """The same for a route that answers in OpenAI's shape, with its statuses."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, fields = _EXAMPLES[code]
        status, body = openai_shape(Problem(status, code, fields["detail"]))
        entry = by_status.setdefault(status, _empty_openai_problem())
        title = code.replace("_", " ").capitalize()
        entry["description"] = f"{entry['description']}, {title}".lstrip(", ")
        entry["content"]["application/json"]["examples"][code] = {"summary": title, "value": body}
    return by_status


def answer(status: int, **examples: Any) -> dict[int | str, dict[str, Any]]:
    """What a route's ``responses`` say of its JSON answer, beside the schema that FastAPI knows."""
    named = {name: {"value": value} for name, value in examples.items()}
    return {status: {"content": {"application/json": {"examples": named}}}}


def json_body(model: type[BaseModel], examples: dict[str, Any]) -> dict[str, Any]:
    """``openapi_extra`` of a route that reads its body itself."""
    schema = {"$ref": REF.format(model=model.__name__)}
    named = {name: {"value": value} for name, value in examples.items()}
    content = {"application/json": {"schema": schema, "examples": named}}
    return {"requestBody": {"required": True, "content": content}}


def install_openapi(app: FastAPI, max_wait_s: float) -> None:
    """Add the schemas that only `json_body` and `problems` refer to, and the limit that is a setting."""
    derive = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            described = derive()
            _, own = models_json_schema(
                [(model, "validation") for model in _UNDERIVED],
                ref_template=REF,
            )
            schemas = described.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in own["$defs"].items():
                schemas.setdefault(name, schema)
            _drop_derived_problems(described)
            _describe_parameters(described, max_wait_s)
            # A stream is no string: FastAPI says so for want of a model.
            for path in ("/v1/jobs/{job_id}/events", "/v1/queue/events"):
                followed = described["paths"][path]["get"]["responses"]["200"]
                followed["content"]["text/event-stream"].pop("schema", None)
            app.openapi_schema = described
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


class BulkBody(BaseModel):
    """1 to 1000 jobs, each accepted or refused on its own."""

    model_config = ConfigDict(extra="forbid")

    jobs: list[JobRequest] = Field(min_length=1, max_length=MAX_BULK_JOBS)


# What only `json_body`, `problems` and `openai_problems` refer to.
_UNDERIVED: tuple[type[BaseModel], ...] = (
    JobRequest,
    BulkBody,
    ChatRequest,
    CompletionRequest,
    BatchRequest,
    ProblemBody,
    OpenAIErrorBody,
)


def _describe_parameters(described: dict[str, Any], max_wait_s: float) -> None:
    """A parameter that may be left out is not null then, as FastAPI has it."""
    for path, methods in described["paths"].items():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                schema = parameter["schema"]
                given = [one for one in schema.pop("anyOf", ()) if one != {"type": "null"}]
                schema.update(*given)
                if (path, parameter["name"]) == ("/v1/jobs/{job_id}", "wait"):
                    schema["maximum"] = max_wait_s


def _drop_derived_problems(described: dict[str, Any]) -> None:
    """FastAPI's own 422, which it adds where none is declared, is never answered here."""
    for name in ("HTTPValidationError", "ValidationError"):
        described["components"]["schemas"].pop(name, None)
    for methods in described["paths"].values():
        for operation in methods.values():
            answers = operation["responses"]
            if "422" in answers and PROBLEM_MEDIA_TYPE not in answers["422"]["content"]:
                del answers["422"]


def _empty_openai_problem() -> dict[str, Any]:
    schema = {"$ref": REF.format(model=OpenAIErrorBody.__name__)}
    return {"description": "", "content": {"application/json": {"schema": schema, "examples": {}}}}


def _empty_problem(status: int) -> dict[str, Any]:
    schema = {"$ref": REF.format(model=ProblemBody.__name__)}
    entry: dict[str, Any] = {
        "description": "",
        "content": {PROBLEM_MEDIA_TYPE: {"schema": schema, "examples": {}}},
    }
    if status in (429, 503):
        entry["headers"] = {
            "Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}
        }
    if status in (401, 403):
        entry["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return entry
