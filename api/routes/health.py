"""``/healthz`` and ``/readyz``: for process managers and load balancers."""

from fastapi import APIRouter, Response

from api.answers.schemas import Health, Readiness
from api.description import examples
from api.description.openapi import answer
from api.services import Api

router = APIRouter(tags=["health"])


@router.get(
    "/healthz",
    response_model=Health,
    summary="The process is alive",
    responses=answer(200, ok=examples.HEALTH),
)
async def healthz() -> Response:
    """Never touches Redis: an outage there is no reason to restart this."""
    return Response(Health().to_json(), media_type="application/json")


@router.get(
    "/readyz",
    response_model=Readiness,
    summary="Jobs are accepted",
    responses={
        **answer(200, ready=examples.READY),
        503: {"model": Readiness, "description": "Not yet, or not now."},
    },
)
async def readyz(api: Api) -> Response:
    """Redis takes new jobs, the tokenizer is loaded, and a worker is alive whose engine does not hang.

    Redis is asked once a second at most.
    """
    found = await api.readiness.look()
    code = 200 if found.ready else 503
    return Response(found.to_json(), code, media_type="application/json")
