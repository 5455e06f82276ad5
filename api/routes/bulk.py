"""``/v1/jobs/bulk``: many jobs in one call, each accepted or refused on its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from api.access.gate import Caller
from api.access.payment import give_back, pay
from api.access.tenancy import Submitter
from api.answers.errors import problem_of
from api.answers.schemas import BulkAnswer, BulkItem
from api.description import examples
from api.description.openapi import SUBMIT_PROBLEMS, BulkBody, answer, json_body, problems
from api.directory import Directory, ServedQueue
from api.http.tracing import traceparent_of
from api.requests.accepting import IdempotencyKey, check_key, count_outcome
from api.requests.bodies import (
    BulkRequest,
    has_surrogate_escape,
    parse,
    parse_bulk_leniently,
    parse_item,
    read_json,
)
from api.requests.submissions import new_job
from api.services import Api, Services
from millpond.errors import MillpondError, QueueFullError
from millpond.messages import job_id_from_key
from millpond.queue.submission import NewJob, Submission

BULK_PATH = "/v1/jobs/bulk"
MAX_BULK_BYTES = 16 * 1024 * 1024
_EXAMPLES = {
    "two": {"jobs": [{"prompt": "What is 7 times 8?"}, {"prompt": "And 8 times 9?", "seed": 1}]}
}

router = APIRouter(tags=["jobs"])


@router.post(
    BULK_PATH,
    response_model=BulkAnswer,
    summary="Submit up to 1000 jobs",
    responses=answer(200, mixed=examples.BULK) | problems(*SUBMIT_PROBLEMS),
    openapi_extra=json_body(BulkBody, _EXAMPLES),
)
async def submit_bulk(
    request: Request, api: Api, caller: Submitter, idempotency_key: IdempotencyKey = None
) -> Response:
    """The answers come in the order of the jobs. The call fails as a whole only for an outer fault.

    An Idempotency-Key counts for each job together with its place: the call can be repeated.
    """
    key = None if idempotency_key is None else check_key(idempotency_key)
    bulk = await _parse(api, await read_json(request))
    trace = traceparent_of(request)
    checked = await api.home.tokenizing.in_thread(
        lambda: _check(api.directory, bulk.jobs, caller, key, trace)
    )
    checked = await _without_refused_webhooks(api, checked)
    new = [job for job in checked if isinstance(job, _Checked)]
    answers = iter(await _submit_paid(request, api, caller, new) if new else [])
    outcomes = [job if isinstance(job, MillpondError) else next(answers) for job in checked]
    for outcome in outcomes:
        count_outcome(api, outcome)
    items = [_item(i, outcome) for i, outcome in enumerate(outcomes)]
    accepted = sum(item.problem is None for item in items)
    found = BulkAnswer(accepted=accepted, refused=len(items) - accepted, jobs=items)
    return Response(found.to_json(), media_type="application/json")


@dataclass(frozen=True, slots=True)
class _Checked:
    """A job that may be submitted, and where."""

    served: ServedQueue
    job: NewJob


async def _without_refused_webhooks(
    api: Services, checked: Sequence[_Checked | MillpondError]
) -> list[_Checked | MillpondError]:
    urls = {
        one.job.request.webhook_url
        for one in checked
        if isinstance(one, _Checked) and one.job.request.webhook_url is not None
    }
    refusals = await api.webhooks.refusals(urls)
    return [
        refusals.get(one.job.request.webhook_url or "", one) if isinstance(one, _Checked) else one
        for one in checked
    ]


async def _submit_paid(
    request: Request, api: Services, caller: Caller, checked: Sequence[_Checked]
) -> list[Submission | MillpondError]:
    """The jobs pay together: a call that asks for more tokens than are left is refused whole."""
    jobs = [one.job for one in checked]
    await pay(request, api, caller, jobs)
    outcomes: dict[int, Submission | MillpondError] = {}
    for name in {one.served.name for one in checked}:
        places = [i for i, one in enumerate(checked) if one.served.name == name]
        served = checked[places[0]].served
        answers = await served.queue.submit_many([jobs[i] for i in places])
        for i, outcome in zip(places, answers, strict=True):
            outcomes[i] = outcome
            if isinstance(outcome, QueueFullError):
                outcomes[i] = await served.monitor.with_retry_after(outcome)
    in_order = [outcomes[i] for i in range(len(jobs))]
    await give_back(request, api, caller, jobs, in_order)
    return in_order


async def _parse(api: Services, body: bytes) -> BulkRequest:
    try:
        return await parse(BulkRequest, body)
    except MillpondError:
        # A lone surrogate in one job makes the whole body invalid JSON; the other jobs must not suffer.
        if has_surrogate_escape(body) and len(body) <= api.settings.max_body_bytes:
            bulk = await api.home.tokenizing.in_thread(lambda: parse_bulk_leniently(body))
            if bulk is not None:
                return bulk
        raise


def _check(
    directory: Directory,
    items: Sequence[Any],
    caller: Caller,
    key: str | None,
    trace: str | None,
) -> list[_Checked | MillpondError]:
    """Runs on a thread, since it may encode a thousand prompts."""
    checked: list[_Checked | MillpondError] = []
    for i, item in enumerate(items):
        try:
            job = parse_item(item)
            caller.check_priority(job.priority)
            served = directory.serving(job.model)
            prepared = served.tokenizing.prepare_now(job)
        except MillpondError as error:
            checked.append(error)
        else:
            id = None if key is None else job_id_from_key(caller.tenant, f"{key}\n{i}")
            checked.append(_Checked(served, new_job(job, prepared, id, caller, trace)))
    return checked


def _item(index: int, outcome: Submission | MillpondError) -> BulkItem:
    if isinstance(outcome, Submission):
        return BulkItem(
            index=index,
            status_code=202,
            id=outcome.id,
            status=outcome.status,
            replayed=None if outcome.created else True,
        )
    problem = problem_of(outcome)
    return BulkItem(index=index, status_code=problem.status, problem=problem.as_dict())
