"""OpenAI batch files: one request line in, one result line out. Pure: no queue, no Redis.

The shapes are those of the OpenAI Batch API (request and output objects), around the bodies of
`millpond.openai.requests` and `millpond.openai.responses`.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import Field, ValidationError

from millpond.messages import JobRequest, JobResult, JobStatus, Priority
from millpond.messages.fields import Frozen
from millpond.openai.requests import CHAT, ChatBody, CompletionBody, Route
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


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot become a job; ``custom_id`` if it could still be read."""

    line_number: int
    custom_id: str | None
    message: str


def read_rows(lines: Iterable[bytes], *, any_model: bool = False) -> Iterator[Row | BadLine]:
    """Check each line on its own, in order. Blank lines are skipped; a repeated custom_id is bad.

    A row asks for the model that its line names, which fails where another one is served; with
    ``any_model`` it takes whichever is.
    """
    first_seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parsed = _parse(number, line, any_model=any_model)
        if isinstance(parsed, Row):
            first = first_seen.setdefault(parsed.custom_id, number)
            if first != number:
                parsed = BadLine(
                    number, parsed.custom_id, f"custom_id: already used in line {first}"
                )
        yield parsed


def _parse(number: int, line: bytes, *, any_model: bool) -> Row | BadLine:
    if len(line) > MAX_LINE_BYTES:
        return BadLine(number, None, f"longer than {MAX_LINE_BYTES} bytes")
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
    try:
        fields = orjson.loads(line)
    except ValueError as error:
        return BadLine(number, None, f"not JSON: {error}")
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
        return BadLine(number, custom_id, first_error(error))
    except RecursionError:
        return BadLine(number, custom_id, "nested too deeply")
    if others:
        return BadLine(number, custom_id, f"prompt: {1 + len(others)} prompts; one for each line")
    return Row(number, envelope.custom_id, chat, request)


def first_error(error: ValidationError) -> str:
    """``field: what is wrong``, of the first problem."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"{field}: {first['msg']}" if field else str(first["msg"])


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
