"""Batches submits: jobs that arrive during a round trip to Redis share the next one."""

import hashlib

from api.access.gate import Caller
from millpond.messages import JobRequest
from millpond.models.prompts import PreparedPrompt
from millpond.queue.batching import Batcher
from millpond.queue.job_queue import JobQueue
from millpond.queue.submission import NewJob, Submission

MAX_BATCH_JOBS = 200


def new_job(
    request: JobRequest,
    prompt: PreparedPrompt,
    id: str | None,
    caller: Caller,
    traceparent: str | None,
) -> NewJob:
    """The job to queue for a caller, with the counted tokens."""
    return NewJob(
        request.model_copy(update={"cache_salt": _salt(caller, request.cache_salt)}),
        id,
        caller.tenant,
        tokens=prompt.budget_tokens,
        tenant_limit=caller.unfinished_jobs,
        tenant_bytes=caller.stored_bytes,
        prompt_tokens=len(prompt.token_ids),
        traceparent=traceparent,
    )


def _salt(caller: Caller, own: str | None) -> str | None:
    """Tenants share nothing in the prefix cache: from how fast it answers, one could guess at the other's
    prompts."""
    if caller.key is None:
        return own
    return hashlib.sha256(f"{caller.tenant}\0{own or ''}".encode()).hexdigest()[:32]


class SubmitBatcher(Batcher[NewJob, Submission]):
    """`JobQueue.submit` for many callers at once. Returns once Redis has answered."""

    def __init__(self, queue: JobQueue) -> None:
        super().__init__("submit", queue.submit_many, MAX_BATCH_JOBS)
