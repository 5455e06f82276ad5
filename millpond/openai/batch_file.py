"""OpenAI batch files: one request line in, one result line out. Pure: no queue, no Redis.

The shapes are those of the OpenAI Batch API (request and output objects), with the extensions
``ignore_eos`` and ``return_token_ids`` in a body and ``token_ids`` in a choice, as vLLM names them,
and the other fields of `SamplingParams`.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import Field, ValidationError, model_validator

from millpond.messages import (
    Choice,
    FinishReason,
    JobRequest,
    JobResult,
    JobStatus,
    Message,
    Priority,
)
from millpond.messages.fields import Frozen
from millpond.messages.sampling_params import SamplingParams
from millpond.openai import logprobs as openai_logprobs

MAX_CUSTOM_ID_CHARS = 512
MAX_LINE_BYTES = 8 * 1024 * 1024
BAD_LINE_CODE = "invalid_line"

_FINISH = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length", FinishReason.LOOP: "loop"}


class _Body(SamplingParams):
    model: str | None = Field(default=None, min_length=1, max_length=128)


class ChatBody(_Body):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _one_number_of_logprobs(cls, fields: dict[str, Any]) -> dict[str, Any]:
        return openai_logprobs.asked_for(fields)


class CompletionBody(_Body):
    prompt: str = Field(min_length=1)


class BatchLine(Frozen):
    custom_id: str = Field(min_length=1, max_length=MAX_CUSTOM_ID_CHARS)
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/completions"]
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
        chat = envelope.url == "/v1/chat/completions"
        request = _chat_request(envelope.body) if chat else _completion_request(envelope.body)
        if any_model:
            request = request.model_copy(update={"model": None})
    except ValidationError as error:
        return BadLine(number, custom_id, first_error(error))
    except RecursionError:
        return BadLine(number, custom_id, "nested too deeply")
    return Row(number, envelope.custom_id, chat, request)


def _chat_request(fields: dict[str, Any]) -> JobRequest:
    body = ChatBody.model_validate(fields)
    params = _sampling(body)
    if body.max_completion_tokens is not None:
        params["max_tokens"] = body.max_completion_tokens
    return JobRequest(messages=body.messages, **params)


def _completion_request(fields: dict[str, Any]) -> JobRequest:
    body = CompletionBody.model_validate(fields)
    return JobRequest(prompt=body.prompt, raw=True, **_sampling(body))


def _sampling(body: _Body) -> dict[str, Any]:
    names = {*SamplingParams.model_fields, "model"}
    given = body.model_dump(include=names, exclude_unset=True)
    return {**given, "priority": Priority.BATCH, "stream": False}


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
    usage, receipt = result.usage, result.receipt
    assert usage is not None, "a succeeded job has a usage"
    assert receipt is not None, "a succeeded job has a receipt"
    body: dict[str, Any] = {
        "id": f"{'chatcmpl' if row.chat else 'cmpl'}-{result.id}",
        "object": "chat.completion" if row.chat else "text_completion",
        "created": math.floor((result.finished_ms or 0) / 1000),
        "model": receipt.model,
        "choices": [_choice(row, choice) for choice in result.choices or [_only(result)]],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        },
    }
    if result.prompt_token_ids is not None:
        body["prompt_token_ids"] = result.prompt_token_ids
    response = {"status_code": 200, "request_id": result.id, "body": body}
    return _line(row.line_number, row.custom_id, response, None)


def _only(result: JobResult) -> Choice:
    """The single text of a job that asked for one."""
    return Choice(
        index=0,
        finish_reason=result.finish_reason,
        text=result.text,
        token_ids=result.token_ids,
        logprobs=result.logprobs,
    )


def _choice(row: Row, choice: Choice) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "index": choice.index,
        "finish_reason": _FINISH[choice.finish_reason],
    }
    if row.chat:
        shape["message"] = {"role": "assistant", "content": choice.text}
    else:
        shape["text"] = choice.text
    if choice.token_ids is not None:
        shape["token_ids"] = choice.token_ids
    if choice.logprobs is not None:
        logprobs = openai_logprobs.chat_shape if row.chat else openai_logprobs.completion_shape
        shape["logprobs"] = logprobs(choice.logprobs)
    return shape


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
