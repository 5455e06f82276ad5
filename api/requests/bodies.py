"""From the bytes of a request to checked messages, with errors that name the field."""

import asyncio
import json
import re
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, Field, ValidationError

from api.answers.errors import InvalidBodyError, InvalidJsonError, UnsupportedMediaTypeError
from api.answers.problems import Fault
from millpond.messages import JobRequest
from millpond.messages.fields import Frozen

Model = TypeVar("Model", bound=BaseModel)

MAX_BULK_JOBS = 1_000
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class BulkRequest(Frozen):
    """The outer object only; each job is checked on its own, so that a bad one stops no other."""

    jobs: Annotated[list[Any], Field(min_length=1, max_length=MAX_BULK_JOBS)]


async def read_json(request: Request) -> bytes:
    """The whole body of a request that says it is JSON. Raises UnsupportedMediaTypeError."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise UnsupportedMediaTypeError
    return await request.body()


async def parse(model: type[Model], body: bytes) -> Model:
    """Raises InvalidJsonError for malformed JSON, InvalidBodyError for invalid fields."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        message = _syntax_error(error)
        if message is None:
            raise InvalidBodyError.from_pydantic(error) from None
    if has_surrogate_escape(body):
        # Not on the event loop: this walks the whole body.
        field = await asyncio.to_thread(lone_surrogate_field, body)
        if field is not None:
            raise InvalidBodyError([Fault(field, "must not contain lone surrogates")])
    raise InvalidJsonError(message)


def _syntax_error(error: ValidationError) -> str | None:
    if error.error_count() != 1:
        return None
    [only] = error.errors(include_url=False, include_input=False)
    return only["msg"] if only["type"] == "json_invalid" else None


def parse_item(item: Any) -> JobRequest:
    """One job out of a bulk. Raises InvalidBodyError."""
    try:
        return JobRequest.model_validate(item)
    except ValidationError as error:
        raise InvalidBodyError.from_pydantic(error) from None


def parse_bulk_leniently(body: bytes) -> BulkRequest | None:
    """A bulk whose items may contain lone surrogates, which only the item's own check refuses.

    None if the body is not such a bulk either.
    """
    try:
        return BulkRequest.model_validate(json.loads(body))
    except (ValueError, RecursionError):
        return None


def has_surrogate_escape(body: bytes) -> bool:
    """Whether the body may contain a lone surrogate."""
    return _SURROGATE_ESCAPE.search(body) is not None


def lone_surrogate_field(body: bytes) -> str | None:
    """The path of the first text with a lone surrogate, in a body that is otherwise valid JSON."""
    try:
        stack: list[tuple[str, Any]] = [("", json.loads(body))]
    except (ValueError, RecursionError):
        return None
    while stack:
        path, value = stack.pop()
        if isinstance(value, str) and _SURROGATE.search(value):
            return path or "body"
        if isinstance(value, dict):
            if any(_SURROGATE.search(key) for key in value):
                return path or "body"
            pairs = [(f"{path}.{key}".lstrip("."), inner) for key, inner in value.items()]
            stack += reversed(pairs)
        elif isinstance(value, list):
            stack += [(f"{path}.{i}".lstrip("."), v) for i, v in enumerate(value)][::-1]
    return None
