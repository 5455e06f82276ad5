"""Submitting one job: the arguments of `submit.lua`, and its answer."""

import base64
import hashlib
from dataclasses import dataclass

from millpond.errors import (
    IdempotencyConflictError,
    InvalidRequestError,
    QueueFullError,
    TenantFullError,
    TenantStorageFullError,
)
from millpond.messages import JOB_ID_PATTERN, TENANT_PATTERN, JobRequest, JobStatus
from millpond.queue.scripts import Arg
from millpond.tracing import TRACEPARENT_PATTERN

DEFAULT_TENANT = "default"
# A rough count, for submitters that cannot tokenize; the worker counts exactly before it runs the job.
BYTES_PER_TOKEN = 4
ASSUMED_OUTPUT_TOKENS = 256

_STATUSES = {status.encode(): status for status in JobStatus}


@dataclass(frozen=True, slots=True)
class Submission:
    """The answer of `JobQueue.submit`. ``created`` is false if the job existed before this call."""

    id: str
    status: JobStatus
    created: bool


@dataclass(frozen=True, slots=True)
class NewJob:
    """One job to submit. ``tokens`` is the maximum of prompt and output together, ``prompt_tokens`` the
    prompt alone; None: estimated from the body's size.

    ``tenant_limit`` is how many unfinished jobs its tenant may have; None: no limit. ``tenant_bytes`` is
    how much may be stored for it; None: what the queue's options say. ``traceparent`` is the trace to
    continue, as W3C's header has it. It is not part of the request: it does not count for idempotency.
    """

    request: JobRequest
    id: str | None = None
    tenant: str = DEFAULT_TENANT
    tokens: int | None = None
    tenant_limit: int | None = None
    prompt_tokens: int | None = None
    tenant_bytes: int | None = None
    traceparent: str | None = None


def script_fields(id: str, job: NewJob) -> list[Arg]:
    """The job's arguments for `submit.lua`.

    Raises InvalidRequestError for a malformed id, tenant or traceparent.
    """
    if not JOB_ID_PATTERN.fullmatch(id):
        raise InvalidRequestError("id", f"must match {JOB_ID_PATTERN.pattern}", limit=64)
    if not TENANT_PATTERN.fullmatch(job.tenant):
        raise InvalidRequestError("tenant", f"must match {TENANT_PATTERN.pattern}", limit=32)
    if job.traceparent is not None and not TRACEPARENT_PATTERN.fullmatch(job.traceparent):
        raise InvalidRequestError("traceparent", f"must match {TRACEPARENT_PATTERN.pattern}")
    request = job.request
    body = request.to_json()
    prompt = (
        max(1, len(body) // BYTES_PER_TOKEN) if job.prompt_tokens is None else job.prompt_tokens
    )
    kind = _kind(request, prompt)
    # Each text has a row with the prompt in it.
    prompt *= request.n
    most = None if request.max_tokens is None else request.n * request.max_tokens
    tokens = prompt + (most or request.n * ASSUMED_OUTPUT_TOKENS)
    if job.tokens is not None:
        tokens, prompt = job.tokens, min(prompt, job.tokens)
        most = tokens - prompt
    deadline_ms = "" if request.deadline_s is None else round(request.deadline_s * 1000)
    return [
        id,
        body,
        _digest(job.tenant, body),
        request.priority,
        job.tenant,
        kind,
        prompt,
        tokens,
        "" if most is None else most,
        deadline_ms,
        "1" if request.stream else "0",
        "" if job.tenant_limit is None else job.tenant_limit,
        request.n,
        request.metadata_bytes or "",
        "" if job.tenant_bytes is None else job.tenant_bytes,
        job.traceparent or "",
        request.webhook_url or "",
    ]


def _digest(tenant: str, body: bytes) -> str:
    """Distinguishes requests with the same id: 120 bits of SHA-256 over ``TENANT NUL BODY``."""
    digest = hashlib.sha256(tenant.encode() + b"\0" + body).digest()[:15]
    return base64.urlsafe_b64encode(digest).decode("ascii")


def _kind(request: JobRequest, prompt_tokens: int) -> str:
    """Jobs of one kind have outputs of similar length: the prompt's form, and its size as a power of two."""
    if request.token_ids is not None:
        form = "ids"
    elif request.messages is not None:
        form = "chat"
    else:
        form = "raw" if request.raw else "ask"
    return f"{form}{prompt_tokens.bit_length()}"


def read_answer(
    id: str,
    job: NewJob,
    kind: bytes,
    detail: bytes | int,
    *,
    max_depth: int,
    max_tenant_bytes: int,
) -> Submission | IdempotencyConflictError | QueueFullError:
    """What `submit.lua` answered for the job."""
    if kind == b"full":
        return QueueFullError(int(detail), max_depth)
    if kind == b"tenant_bytes":
        limit = max_tenant_bytes if job.tenant_bytes is None else job.tenant_bytes
        return TenantStorageFullError(int(detail), limit)
    if kind == b"tenant_full":
        return TenantFullError(int(detail), job.tenant_limit or 0)
    if kind == b"conflict":
        return IdempotencyConflictError(id)
    assert isinstance(detail, bytes)
    return Submission(id, _STATUSES[detail], created=kind == b"accepted")
