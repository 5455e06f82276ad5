"""Checked rows of a batch as they lie in the storage, in the order in which they run. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from millpond.messages import JobRequest
from millpond.openai.batch_file import Row


@dataclass(frozen=True, slots=True)
class QueuedRow:
    """A row, the queue that it goes to, and its size here."""

    queue: str
    row: Row
    num_bytes: int


def encode_row(queue: str, row: Row) -> bytes:
    fields: dict[str, Any] = {
        "queue": queue,
        "line": row.line_number,
        "custom_id": row.custom_id,
        "chat": row.chat,
        "request": orjson.Fragment(row.request.to_json()),
    }
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def decode_rows(data: bytes) -> Iterator[QueuedRow]:
    for line in data.splitlines():
        fields = orjson.loads(line)
        fields["request"].pop("v")
        request = JobRequest.model_validate(fields["request"])
        row = Row(fields["line"], fields["custom_id"], fields["chat"], request)
        yield QueuedRow(fields["queue"], row, len(line))
