"""``/v1/models``: which models are served here."""

from fastapi import APIRouter, Response

from api.openapi import problems
from api.schemas import ModelList
from api.services import Api
from api.views import model_list

router = APIRouter(tags=["models"])


@router.get(
    "/v1/models",
    response_model=ModelList,
    summary="The models, as the workers tell it",
    responses=problems("queue_unavailable"),
)
async def models(api: Api) -> Response:
    answer = model_list(api.preset.name, await api.monitor.state())
    return Response(answer.to_json(), media_type="application/json")
