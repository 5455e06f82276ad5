"""``/metrics``: for Prometheus. It shows what all tenants do together, so it needs ``admin``."""

import asyncio

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from api.access.tenancy import Admin
from api.description.examples import METRICS
from api.services import Api
from millpond.errors import QueueUnavailableError

REDIS_PATIENCE_S = 2.0

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": METRICS}}}
    },
)
async def metrics(api: Api, caller: Admin) -> Response:
    """Answers without Redis too, with ``millpond_redis_up 0``."""
    try:
        async with asyncio.timeout(REDIS_PATIENCE_S):
            served = api.directory.queues
            states = await asyncio.gather(*(queue.monitor.state() for queue in served))
    except (QueueUnavailableError, TimeoutError):
        api.metrics.queue.states = None
    else:
        api.metrics.queue.states = {q.name: s for q, s in zip(served, states, strict=True)}
    return Response(api.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})
