"""``/v1/queue``: what is waiting, what runs, who works."""

from fastapi import APIRouter, Response

from api.openapi import problems
from api.schemas import QueueAnswer
from api.services import Api
from api.views import queue_answer

router = APIRouter(tags=["queue"])


@router.get(
    "/v1/queue",
    response_model=QueueAnswer,
    summary="Depth, totals and workers",
    responses=problems("queue_unavailable"),
)
async def queue(api: Api) -> Response:
    state = await api.results.queue_state()
    answer = queue_answer(api.settings.queue, api.settings.max_depth, state)
    return Response(answer.to_json(), media_type="application/json")
