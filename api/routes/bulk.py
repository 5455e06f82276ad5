"""``/v1/jobs/bulk``: many jobs in one call, each accepted or refused on its own."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from api import examples
from api.accepting import IdempotencyKey, check_key, count_outcome
from api.bodies import (
    BulkRequest,
    has_surrogate_escape,
    parse,
    parse_bulk_leniently,
    parse_item,
    read_json,
)
from api.errors import problem_of
from api.gate import Caller
from api.openapi import SUBMIT_PROBLEMS, BulkBody, answer, json_body, problems
from api.payment import give_back, pay
from api.schemas import BulkAnswer, BulkItem
from api.services import Api, Services
from api.submissions import new_job
from api.tenancy import Submitter
from api.tokenizing import Tokenizing
from millpond.errors import MillpondError, QueueFullError
from millpond.messages import job_id_from_key
from millpond.submission import NewJob, Submission

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
    checked = await api.tokenizing.in_thread(lambda: _check(api.tokenizing, bulk.jobs, caller, key))
    new = [job for job in checked if isinstance(job, NewJob)]
    answers = iter(await _submit_paid(request, api, caller, new) if new else [])
    outcomes = [job if isinstance(job, MillpondError) else next(answers) for job in checked]
    for outcome in outcomes:
        count_outcome(api, outcome)
    items = [_item(i, outcome) for i, outcome in enumerate(await _with_retry(api, outcomes))]
    accepted = sum(item.problem is None for item in items)
    found = BulkAnswer(accepted=accepted, refused=len(items) - accepted, jobs=items)
    return Response(found.to_json(), media_type="application/json")


async def _submit_paid(
    request: Request, api: Services, caller: Caller, new: Sequence[NewJob]
) -> Sequence[Submission | MillpondError]:
    """The jobs pay together: a call that asks for more tokens than are left is refused whole."""
    await pay(request, api, caller, new)
    outcomes = await api.queue.submit_many(new)
    await give_back(request, api, caller, new, outcomes)
    return outcomes


async def _parse(api: Services, body: bytes) -> BulkRequest:
    try:
        return await parse(BulkRequest, body)
    except MillpondError:
        # Half a character in one job makes the whole no JSON; the others are not to suffer from it.
        if has_surrogate_escape(body) and len(body) <= api.settings.max_body_bytes:
            bulk = await api.tokenizing.in_thread(lambda: parse_bulk_leniently(body))
            if bulk is not None:
                return bulk
        raise


def _check(
    tokenizing: Tokenizing, items: Sequence[Any], caller: Caller, key: str | None
) -> list[NewJob | MillpondError]:
    """Runs on a thread: a thousand prompts are to be encoded."""
    checked: list[NewJob | MillpondError] = []
    for i, item in enumerate(items):
        try:
            job = parse_item(item)
            caller.check_priority(job.priority)
            prepared = tokenizing.prepare_now(job)
        except MillpondError as error:
            checked.append(error)
        else:
            id = None if key is None else job_id_from_key(caller.tenant, f"{key}\n{i}")
            checked.append(new_job(job, prepared, id, caller))
    return checked


async def _with_retry(
    api: Services, outcomes: Sequence[Submission | MillpondError]
) -> list[Submission | MillpondError]:
    return [
        await api.monitor.with_retry_after(outcome)
        if isinstance(outcome, QueueFullError)
        else outcome
        for outcome in outcomes
    ]


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
