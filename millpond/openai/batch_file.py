"""OpenAI batch files: one request line in, one result line out. Pure: no queue, no Redis.

The shapes are those of the OpenAI Batch API (request and output objects), around the bodies of
`millpond.openai.requests` and `millpond.openai.responses`.
"""

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import Field, ValidationError

from millpond.messages import JobRequest, JobResult, JobStatus, Priority
from millpond.messages.fields import Frozen
from millpond.openai.requests import CHAT, COMPLETIONS, ChatBody, CompletionBody, Route
from millpond.openai.responses import completion

MAX_CUSTOM_ID_CHARS = 512
MAX_LINE_BYTES = 8 * 1024 * 1024
BAD_LINE_CODE = "invalid_line"


class BatchLine(Frozen):
    custom_id: str = Field(min_length=1, max_length=MAX_CUSTOM_ID_CHARS)
    method: Literal["POST"]
    url: Route
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One good line. ``chat`` tells which shape its output has."""

    line_number: int
    custom_id: str
    chat: bool
    request: JobRequest

    @property
    def route(self) -> Route:
        return CHAT if self.chat else COMPLETIONS


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot become a job; ``custom_id`` if it could still be read, ``param`` the field."""

    line_number: int
    custom_id: str | None
    message: str
    code: str = "invalid_request"
    param: str | None = None


def split_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines in these bytes. Of a line that is too long only the beginning comes, still too long."""
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        rest = rest[: MAX_LINE_BYTES + 1]
    if rest:
        yield rest


def read_rows(
    lines: Iterable[bytes],
    *,
    any_model: bool = False,
    route: str | None = None,
    models: Collection[str] | None = None,
) -> Iterator[Row | BadLine]:
    """Check each line on its own, in order. Blank lines are skipped; a repeated custom_id is bad.

    A row asks for the model that its line names, which fails where another one is served; with
    ``any_model`` it takes whichever is. ``route`` and ``models``, if given, are the only ones allowed.
    """
    first_seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parsed = _parse(number, line, any_model=any_model)
        if isinstance(parsed, Row):
            first = first_seen.setdefault(parsed.custom_id, number)
            parsed = _out_of_place(parsed, first, route, models) or parsed
        yield parsed


def _out_of_place(
    row: Row, first: int, route: str | None, models: Collection[str] | None
) -> BadLine | None:
    """What is wrong with a good line among others. ``first`` is the first line that has its id."""
    if first != row.line_number:
        field, code, message = (
            "custom_id",
            "duplicate_custom_id",
            f"already used in line {first}",
        )
    elif route is not None and row.route != route:
        field, code, message = (
            "url",
            "mismatched_endpoint",
            f"{row.route}; the batch is for {route}",
        )
    elif models is not None and (model := row.request.model) not in (None, *models):
        there = ", ".join(sorted(models))
        field, code, message = (
            "body.model",
            "model_not_found",
            f"{model!r} is not served here; there is {there}",
        )
    else:
        return None
    return BadLine(row.line_number, row.custom_id, f"{field}: {message}", code, field)


def _parse(number: int, line: bytes, *, any_model: bool) -> Row | BadLine:
    if len(line) > MAX_LINE_BYTES:
        return BadLine(number, None, f"longer than {MAX_LINE_BYTES} bytes", "line_too_long")
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        fields = orjson.loads(line)
    except ValueError as error:
        return BadLine(number, None, f"not JSON: {error}", "invalid_json_line")
    custom_id = fields.get("custom_id") if isinstance(fields, dict) else None
    custom_id = custom_id if isinstance(custom_id, str) else None
    try:
        envelope = BatchLine.model_validate(fields)
        chat = envelope.url == CHAT
        body = (ChatBody if chat else CompletionBody).model_validate(envelope.body)
        request, *others = body.jobs(priority=Priority.BATCH, stream=False)
        if any_model:
            request = request.model_copy(update={"model": None})
    except ValidationError as error:
        return BadLine(number, custom_id, first_error(error), param=_first_field(error))
    except RecursionError:
        return BadLine(number, custom_id, "nested too deeply")
    if others:
        message = f"prompt: {1 + len(others)} prompts; one for each line"
        return BadLine(number, custom_id, message, param="prompt")
    return Row(number, envelope.custom_id, chat, request)


def first_error(error: ValidationError) -> str:
    """``field: what is wrong``, of the first problem."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"{field}: {first['msg']}" if field else str(first["msg"])


def _first_field(error: ValidationError) -> str | None:
    return ".".join(str(part) for part in error.errors()[0]["loc"]) or None


def expired_line(row: Row) -> bytes:
    """The output line of a row whose batch expired before it was run."""
    error = {
        "code": "batch_expired",
        "message": "the completion window of the batch ended before this request was run",
        "line": row.line_number,
    }
    return _line(row.line_number, row.custom_id, None, error)


def output_line(row: Row, result: JobResult) -> bytes:
    """The output line of a finished row. A failed one has ``response`` null and an ``error``."""
    if result.status is not JobStatus.SUCCEEDED:
        code = result.error.code if result.error else str(result.status)
        message = result.error.message if result.error else f"the job is {result.status}"
        error = {"code": code, "message": message, "line": row.line_number}
        return _line(row.line_number, row.custom_id, None, error)
    assert result.receipt is not None, "a succeeded job has a receipt"
    created_s = math.floor((result.finished_ms or 0) / 1000)
    body = completion([result], chat=row.chat, model=result.receipt.model, created_s=created_s)
    response = {"status_code": 200, "request_id": result.id, "body": body}
    return _line(row.line_number, row.custom_id, response, None)


def error_line(bad: BadLine) -> bytes:
    error = {
        "code": BAD_LINE_CODE,
        "message": f"line {bad.line_number}: {bad.message}",
        "line": bad.line_number,
    }
    return _line(bad.line_number, bad.custom_id, None, error)


def _line(
    number: int,
    custom_id: str | None,
    response: dict[str, Any] | None,
    error: dict[str, Any] | None,
) -> bytes:
    fields = {
        "id": f"batch_req_{f'line-{number}' if custom_id is None else custom_id}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an output file of an earlier run has: rows that are done, and lines that were told as bad."""

    done: set[str]
    bad_lines: set[int]


def keep_finished(path: Path) -> Earlier:
    """Rewrite an output file of an earlier run to its good lines, and return what it had.

    Error lines, and a last line cut off by a kill, are dropped: those rows run again.
    """
    earlier = Earlier(set(), set())
    if not path.exists():
        return earlier
    partial = path.with_name(path.name + ".partial")
    with path.open("rb") as old, partial.open("wb") as new:
        for line in old:
            try:
                fields = orjson.loads(line)
            except ValueError:
                continue
            if not isinstance(fields, dict) or not line.endswith(b"\n"):
                continue
            if fields.get("response"):
                earlier.done.add(fields["custom_id"])
                new.write(line)
            elif (fields.get("error") or {}).get("code") == BAD_LINE_CODE:
                earlier.bad_lines.add(fields["error"]["line"])
    partial.replace(path)
    return earlier
