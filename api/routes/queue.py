"""``/v1/queue``: what is waiting, what runs, who works: of all tenants, so it needs ``admin``."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.access.tenancy import Admin
from api.answers.schemas import QueueAnswer
from api.answers.views import queue_answer
from api.description import examples
from api.description.openapi import answer, problems
from api.services import Api

router = APIRouter(tags=["queue"])


@router.get(
    "/v1/queue",
    response_model=QueueAnswer,
    summary="Depth, totals and workers",
    responses=answer(200, busy=examples.QUEUE) | problems("unknown_model", "queue_unavailable"),
)
async def queue(
    api: Api,
    caller: Admin,
    model: Annotated[
        str | None, Query(description="The model whose queue to show; else that of the settings.")
    ] = None,
) -> Response:
    served = await api.directory.find(model)
    found = queue_answer(served, api.settings.max_depth, await served.results.queue_state())
    return Response(found.to_json(), media_type="application/json")
