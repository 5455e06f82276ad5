"""``/v1/models``: which models are served here."""

from fastapi import APIRouter, Response

from api.access.tenancy import Reader
from api.answers.schemas import ModelList
from api.answers.views import model_list
from api.description import examples
from api.description.openapi import answer, problems
from api.services import Api

router = APIRouter(tags=["models"])


@router.get(
    "/v1/models",
    response_model=ModelList,
    summary="The models, as the workers tell it",
    responses=answer(200, one=examples.MODELS) | problems("queue_unavailable"),
)
async def models(api: Api, caller: Reader) -> Response:
    found = model_list([(served, await served.monitor.state()) for served in api.directory.queues])
    return Response(found.to_json(), media_type="application/json")
