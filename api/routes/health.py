"""``/healthz`` and ``/readyz``: for those who start, watch and balance this process."""

import asyncio

from fastapi import APIRouter, Response

from api import examples
from api.openapi import answer
from api.schemas import Health, Readiness
from api.services import Api
from millpond.errors import QueueUnavailableError

REDIS_PATIENCE_S = 2.0

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
    """Redis answers and the tokenizer is loaded. Workers are reported and not waited for."""
    try:
        async with asyncio.timeout(REDIS_PATIENCE_S):
            state = await api.home.results.queue_state()
    except (QueueUnavailableError, TimeoutError):
        redis, alive = False, []
    else:
        redis, alive = True, [worker for worker in state.workers if worker.alive]
    found = Readiness(
        ready=redis and api.home.tokenizing.ready,
        redis=redis,
        tokenizer=api.home.tokenizing.ready,
        workers_alive=len(alive),
        workers_ready=sum(worker.ready for worker in alive),
    )
    code = 200 if found.ready else 503
    return Response(found.to_json(), code, media_type="application/json")
