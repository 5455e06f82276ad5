"""``GET /v1/jobs``: the tenant's jobs of one status, in pages."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.access.tenancy import Reader
from api.answers.schemas import JobPage
from api.answers.views import job_page
from api.description import examples
from api.description.openapi import answer, problems
from api.services import Api
from millpond.listing import CURSOR_PATTERN, MAX_PAGE
from millpond.messages import JobStatus

DEFAULT_PAGE = 50

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Jobs in one page, at most.")]
Model = Annotated[
    str | None, Query(description="The model whose queue to list; else that of the settings.")
]
Cursor = Annotated[
    str | None,
    Query(
        description="That of the page before; without it, the first page.",
        json_schema_extra={"pattern": CURSOR_PATTERN},
    ),
]

router = APIRouter(tags=["jobs"])


@router.get(
    "/v1/jobs",
    response_model=JobPage,
    summary="List jobs of one status",
    responses=answer(200, page=examples.JOB_PAGE)
    | problems("invalid_request", "unknown_model", "queue_unavailable"),
)
async def list_jobs(
    api: Api,
    caller: Reader,
    status: Annotated[JobStatus, Query(description="The jobs that have it now.")],
    limit: Limit = DEFAULT_PAGE,
    cursor: Cursor = None,
    model: Model = None,
) -> Response:
    """Queued ones by priority in the order of their lanes, running ones by id, ended ones newest first.

    Of those that have ended, the tenant's last 1,000 are listed, whatever their status. A page may be
    short or empty: the last one is the one without a cursor.
    """
    lists = (await api.directory.find(model)).lists
    page = await lists.jobs(status, tenant=caller.tenant, limit=limit, cursor=cursor)
    return Response(job_page(page).to_json(), media_type="application/json")
