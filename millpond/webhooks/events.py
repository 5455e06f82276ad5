"""The events that webhooks are told, and what they are sent. Pure."""

import base64
import datetime
import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import orjson

from millpond.messages import JobResult

# A larger result is not sent along; it is there to be read.
MAX_RESULT_BYTES = 256 * 1024


class WebhookEvent(StrEnum):
    JOB_SUCCEEDED = "job.succeeded"
    JOB_FAILED = "job.failed"
    JOB_CANCELLED = "job.cancelled"
    JOB_EXPIRED = "job.expired"
    BATCH_COMPLETED = "batch.completed"
    BATCH_FAILED = "batch.failed"
    BATCH_EXPIRED = "batch.expired"
    BATCH_CANCELLED = "batch.cancelled"


def webhook_id(queue: str, event: str, subject: str, at_ms: int) -> str:
    """The ``webhook-id`` of an event: the same at every try and for every receiver, so that one who
    gets it twice can tell.
    """
    digest = hashlib.sha256(f"{queue}\0{event}\0{subject}\0{at_ms}".encode()).digest()[:15]
    return "evt_" + base64.b32encode(digest).decode().lower()


def job_data(job_id: str, event: str, result: JobResult | None) -> dict[str, Any]:
    """What is told of a job that has ended. ``result`` None: it has expired since."""
    data: dict[str, Any] = {"id": job_id, "status": event.partition(".")[2]}
    if result is not None:
        shown = result.without_worker().model_dump(mode="json", exclude_none=True)
        if len(orjson.dumps(shown)) <= MAX_RESULT_BYTES:
            data["result"] = shown
    return data


def payload(id: str, event: str, at_ms: int, data: Mapping[str, Any]) -> bytes:
    """The body: ``type``, ``timestamp`` and ``data`` as Standard Webhooks has them, and beside them
    what OpenAI's clients look for.
    """
    at = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
    return orjson.dumps(
        {
            "type": event,
            "timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "data": data,
            "id": id,
            "object": "event",
            "created_at": at_ms // 1000,
        }
    )
