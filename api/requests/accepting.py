"""From a checked request to an accepted job: derives ids from keys, pays tokens, counts outcomes."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Header, Request

from api.access.gate import Caller
from api.access.payment import give_back, pay
from api.answers.errors import InvalidBodyError
from api.answers.problems import Fault
from api.directory import ServedQueue
from api.http.tracing import traceparent_of
from api.requests.submissions import new_job
from api.services import Services
from millpond.errors import MillpondError, QueueFullError
from millpond.messages import JobRequest, job_id_from_key
from millpond.queue.submission import NewJob, Submission

MAX_KEY_CHARS = 255
KEY_HEADER = "Idempotency-Key"
_KEY = re.compile(r"[!-~]{1,255}")

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias=KEY_HEADER,
        description="1 to 255 visible ASCII characters. The same request under it is one job.",
        json_schema_extra={"pattern": f"^{_KEY.pattern}$"},
    ),
]


def check_key(key: str) -> str:
    """Raises InvalidBodyError naming the header."""
    if not _KEY.fullmatch(key):
        message = f"must be 1 to {MAX_KEY_CHARS} visible ASCII characters"
        raise InvalidBodyError([Fault(KEY_HEADER, message, MAX_KEY_CHARS)])
    return key


async def accept(
    request: Request, api: Services, caller: Caller, job: JobRequest, key: str | None
) -> tuple[ServedQueue, Submission]:
    """Queue the job once, even if the request is repeated with its key. Returns once Redis has stored it.

    Raises PriorityForbiddenError, InvalidRequestError and its children, LimitExceededError,
    QueueFullError, IdempotencyConflictError, ModelNotReadyError, QueueUnavailableError.
    """
    accepted = await accept_together(request, api, caller, [job], key)
    return accepted.served, accepted.submissions[0]


@dataclass(frozen=True, slots=True)
class Accepted:
    """Jobs of one request. ``prompt_tokens`` are counted for each."""

    served: ServedQueue
    submissions: list[Submission]
    prompt_tokens: list[int]


async def accept_together(
    request: Request, api: Services, caller: Caller, jobs: Sequence[JobRequest], key: str | None
) -> Accepted:
    """As `accept`, for jobs of one model: all of them, or none is left in the queue."""
    for job in jobs:
        caller.check_priority(job.priority)
        await api.webhooks.check(job.webhook_url)
    served = await api.directory.find(jobs[0].model)
    ids = [None if key is None else _id(caller, key, place) for place in range(len(jobs))]
    prompts = [await served.tokenizing.prepare(job) for job in jobs]
    new = [
        new_job(job, prompt, id, caller, traceparent_of(request))
        for job, prompt, id in zip(jobs, prompts, ids, strict=True)
    ]
    for id in ids:
        if id is not None:
            await api.directory.check_unused_elsewhere(id, served)
    await pay(request, api, caller, new)
    outcomes = await asyncio.gather(*(_submit(served, one) for one in new))
    await give_back(request, api, caller, new, outcomes)
    refused = [outcome for outcome in outcomes if isinstance(outcome, MillpondError)]
    accepted = [outcome for outcome in outcomes if isinstance(outcome, Submission)]
    if refused:
        for submission in accepted:
            if submission.created:
                await served.queue.cancel(submission.id, tenant=caller.tenant)
        raise refused[0]
    for submission in accepted:
        count_outcome(api, submission)
        api.directory.remember(submission.id, served)
    return Accepted(served, accepted, [len(prompt.token_ids) for prompt in prompts])


def _id(caller: Caller, key: str, place: int) -> str:
    return job_id_from_key(caller.tenant, f"{key}\n{place}" if place else key)


async def _submit(served: ServedQueue, job: NewJob) -> Submission | MillpondError:
    try:
        return await served.submissions(job)
    except QueueFullError as error:
        return await served.monitor.with_retry_after(error)
    except MillpondError as error:
        return error


@contextlib.asynccontextmanager
async def refusals_counted(api: Services) -> AsyncIterator[None]:
    """Count refused requests."""
    try:
        yield
    except MillpondError as error:
        count_outcome(api, error)
        raise


def count_outcome(api: Services, outcome: Submission | MillpondError) -> None:
    if isinstance(outcome, Submission):
        name = "accepted" if outcome.created else "replayed"
    else:
        name = outcome.code
    api.metrics.jobs.labels(name).inc()
