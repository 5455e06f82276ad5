"""``/v1/queue``: what is waiting, what runs, who works: of all tenants, so it needs ``admin``."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api import examples
from api.openapi import answer, problems
from api.schemas import QueueAnswer
from api.services import Api
from api.tenancy import Admin
from api.views import queue_answer

router = APIRouter(tags=["queue"])


@router.get(
    "/v1/queue",
    response_model=QueueAnswer,
    summary="Depth, totals and workers",
    responses=answer(200, busy=examples.QUEUE) | problems("queue_unavailable"),
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
