"""``/v1/jobs``: submit one, look at it, wait for it, cancel it."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from api.access.tenancy import Reader, Submitter
from api.answers.errors import UnauthenticatedError
from api.answers.schemas import CancelAnswer, JobAccepted, JobState
from api.answers.views import job_accepted, job_path, job_state
from api.description import examples
from api.description.openapi import SUBMIT_PROBLEMS, answer, json_body, problems
from api.http.hangup import until_hangup
from api.requests.accepting import IdempotencyKey, accept, check_key, refusals_counted
from api.requests.bodies import parse, read_json
from api.services import Api
from millpond.errors import (
    InvalidRequestError,
    JobNotFoundError,
)
from millpond.messages import JOB_ID_PATTERN, JobRequest, JobStatus
from millpond.queue.results import JobView

REPLAYED = "Idempotency-Replayed"

_EXAMPLES: dict[str, Any] = {
    "shortest": {"prompt": "Why is the sky blue?"},
    "chat": {
        "messages": [
            {"role": "system", "content": "You are a programming assistant."},
            {"role": "user", "content": "Write a haiku about queues."},
        ],
        "max_tokens": 64,
        "temperature": 0.6,
        "top_p": 0.95,
        "seed": 7,
        "stop": ["\n\n"],
        "priority": "interactive",
        "deadline_s": 120,
        "metadata": {"user": "42"},
    },
    "vote": {
        "prompt": "What is 17 + 25? Put the result into \\boxed{}.",
        "n": 8,
        "vote": "boxed",
        "temperature": 0.7,
    },
}

router = APIRouter(tags=["jobs"])


@router.post(
    "/v1/jobs",
    status_code=202,
    response_model=JobAccepted,
    summary="Submit a job",
    responses=answer(202, accepted=examples.ACCEPTED) | problems(*SUBMIT_PROBLEMS),
    openapi_extra=json_body(JobRequest, _EXAMPLES),
)
async def submit(
    request: Request, api: Api, caller: Submitter, idempotency_key: IdempotencyKey = None
) -> Response:
    """Checked whole before anything is queued; 202 once Redis has stored it."""
    key = None if idempotency_key is None else check_key(idempotency_key)
    async with refusals_counted(api):
        job = await parse(JobRequest, await read_json(request))
        served, submission = await accept(request, api, caller, job, key)
    headers = {"Location": job_path(submission.id)}
    if not submission.created:
        headers[REPLAYED] = "true"
    body = job_accepted(submission, served.queue.keys).to_json()
    return Response(body, 202, headers, media_type="application/json")


@router.get(
    "/v1/jobs/{job_id}",
    response_model=JobState,
    summary="Look at a job, or wait for it",
    responses=answer(200, **examples.STATES)
    | problems("job_not_found", "invalid_request", "too_many_streams", "queue_unavailable"),
)
async def get_job(
    request: Request,
    api: Api,
    caller: Reader,
    job_id: str,
    wait: Annotated[
        float,
        Query(ge=0, allow_inf_nan=False, description="Seconds to wait for its end; 60 at most."),
    ] = 0.0,
) -> Response:
    """Status, position and reason for waiting; result and receipt once it has ended."""
    id = check_id(job_id)
    limit_s = api.settings.max_wait_s
    if wait > limit_s:
        raise InvalidRequestError("wait", f"must be at most {limit_s:g} seconds", limit=limit_s)
    served = await api.directory.holding(id, caller.tenant)
    view: JobView | None = None
    if wait > 0:
        with api.open_answers.open(caller) as opened:
            waiting = served.results.wait(id, wait, tenant=caller.tenant)
            view = await until_hangup(waiting, request.receive, api.closing, opened.revoked)
        if opened.revoked.is_set():
            raise UnauthenticatedError
    if view is None:
        view = await served.results.get(id, tenant=caller.tenant)
    state = await served.monitor.state() if view.status is JobStatus.QUEUED else None
    found = job_state(view, state, show_worker=caller.sees_workers)
    return Response(found.to_json(), media_type="application/json")


@router.delete(
    "/v1/jobs/{job_id}",
    response_model=CancelAnswer,
    summary="Cancel a job",
    responses={
        **answer(200, cancelled=examples.CANCELLED),
        202: {
            "model": CancelAnswer,
            "description": "Running; its worker is about to end it.",
            **answer(202, cancelling=examples.CANCELLING)[202],
        },
        **problems("job_not_found", "queue_unavailable"),
    },
)
async def cancel(api: Api, caller: Submitter, job_id: str) -> Response:
    """A queued job ends at once, a running one within a heartbeat; an ended one stays as it is."""
    id = check_id(job_id)
    served = await api.directory.holding(id, caller.tenant)
    status = await served.queue.cancel(id, tenant=caller.tenant)
    if status is None:
        raise JobNotFoundError(id)
    found = CancelAnswer(id=id, status=status, cancelling=not status.terminal)
    code = 202 if found.cancelling else 200
    return Response(found.to_json(), code, media_type="application/json")


def check_id(id: str) -> str:
    """A malformed id is the id of no job. Raises JobNotFoundError."""
    if not JOB_ID_PATTERN.fullmatch(id):
        raise JobNotFoundError(id)
    return id
