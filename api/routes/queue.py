"""``/v1/queue``: what is waiting, what runs, who works: of all tenants, so it needs ``admin``."""

from fastapi import APIRouter, Response

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
async def queue(api: Api, caller: Admin) -> Response:
    state = await api.results.queue_state()
    found = queue_answer(api.settings.queue, api.settings.max_depth, state)
    return Response(found.to_json(), media_type="application/json")
