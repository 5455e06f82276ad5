"""``/v1/dead``: the tenant's dead letters. Look at them, and have them run again."""

from fastapi import APIRouter, Request, Response

from api.access.tenancy import Reader, Submitter
from api.answers.schemas import DeadLetter, JobAccepted, JobPage
from api.answers.views import dead_letter, job_accepted, job_page, job_path
from api.description import examples
from api.description.openapi import SUBMIT_PROBLEMS, answer, problems
from api.requests.accepting import accept, refusals_counted
from api.routes.jobs import check_id
from api.routes.lists import DEFAULT_PAGE, Cursor, Limit, Model
from api.services import Api
from millpond.listing import retry_key

router = APIRouter(tags=["jobs"])


@router.get(
    "/v1/dead",
    response_model=JobPage,
    summary="List dead letters",
    responses=answer(200, page=examples.DEAD_PAGE)
    | problems("invalid_request", "unknown_model", "queue_unavailable"),
)
async def list_dead(
    api: Api,
    caller: Reader,
    limit: Limit = DEFAULT_PAGE,
    cursor: Cursor = None,
    model: Model = None,
) -> Response:
    """Jobs that ran out of attempts, or met too many deaths: newest first, with their errors.

    They are kept as long as results are, the last 10,000 of the whole queue.
    """
    lists = (await api.directory.find(model)).lists
    page = await lists.dead(tenant=caller.tenant, limit=limit, cursor=cursor)
    return Response(job_page(page).to_json(), media_type="application/json")


@router.get(
    "/v1/dead/{job_id}",
    response_model=DeadLetter,
    summary="Look at a dead letter",
    responses=answer(200, one=examples.DEAD_LETTER)
    | problems("job_not_found", "queue_unavailable"),
)
async def show_dead(api: Api, caller: Reader, job_id: str) -> Response:
    """What was asked, and what became of it."""
    id = check_id(job_id)
    served = await api.directory.holding(id, caller.tenant)
    job, body = await served.lists.dead_letter(id, tenant=caller.tenant)
    return Response(dead_letter(job, body).to_json(), media_type="application/json")


@router.post(
    "/v1/dead/{job_id}/retry",
    status_code=202,
    response_model=JobAccepted,
    summary="Run a dead letter again",
    responses=answer(202, accepted=examples.ACCEPTED) | problems("job_not_found", *SUBMIT_PROBLEMS),
)
async def retry_dead(request: Request, api: Api, caller: Submitter, job_id: str) -> Response:
    """A new job of the same body, and the letter leaves the list; the old id keeps its result.

    Harmless when repeated: the new id follows from the old one.
    """
    id = check_id(job_id)
    held = await api.directory.holding(id, caller.tenant)
    _, body = await held.lists.dead_letter(id, tenant=caller.tenant)
    if body.model is None and held is not api.home:
        body = body.model_copy(update={"model": held.model})
    async with refusals_counted(api):
        served, submission = await accept(request, api, caller, body, retry_key(id))
    await held.queue.forget_dead(id)
    found = job_accepted(submission, served.queue.keys)
    headers = {"Location": job_path(submission.id)}
    return Response(found.to_json(), 202, headers, media_type="application/json")
