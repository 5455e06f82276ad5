"""``/v1/queue``: what is waiting, what runs, who works: of all tenants, so it needs ``admin``."""

from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Response

from api.access.tenancy import Admin
from api.answers.schemas import QueueAnswer
from api.answers.sse import EventStream, encode
from api.answers.views import live_queue_answer, queue_answer
from api.description import examples
from api.description.openapi import answer, problems
from api.directory import ServedQueue
from api.feed import QueueAway, QueueLook
from api.services import Api
from millpond.messages.worker_rows import WorkerRows

Model = Annotated[
    str | None, Query(description="The model whose queue to show; else that of the settings.")
]

_EXAMPLE = """\
event: history
data: [{"at_ms":1760000000000,"queued":3,"running":64,"jobs_per_s":41.2,"tokens_per_s":5320.0}]

event: queue
data: {"queue":"default","depth":3,"lanes":{"acme":{"normal":3}},"leases":{"host-71-a9":{"number":64}}}

event: rows
data: {"worker":"host-71-a9","slots":128,"rows":[{"job":"k3v...","tokens":12,"max_tokens":256}],"ended":[]}
"""

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
    model: Model = None,
) -> Response:
    served = await api.directory.find(model)
    found = queue_answer(served, api.settings.max_depth, await served.results.queue_state())
    return Response(found.to_json(), media_type="application/json")


@router.get(
    "/v1/queue/events",
    status_code=200,
    response_class=EventStream,
    summary="Watch the queue",
    responses={
        200: {
            "description": "`history` (first: the last ten minutes), `queue` (each second), `rows` (of one "
            "worker, several times a second), `away` (Redis does not answer)",
            "content": {"text/event-stream": {"example": _EXAMPLE}},
        },
        **problems("unknown_model", "too_many_streams", "queue_unavailable"),
    },
)
async def watch(api: Api, caller: Admin, model: Model = None) -> Response:
    """Goes on until the client leaves. Many watchers cost Redis no more than one."""
    served = await api.directory.find(model)
    seen = _seen(served, api.settings.max_depth)
    return EventStream(seen, api.closing, api.open_answers.open(caller))


async def _seen(served: ServedQueue, max_depth: int) -> AsyncGenerator[bytes, None]:
    async with served.feed.watching() as items:
        yield encode("history", orjson.dumps([asdict(m) for m in served.feed.history.moments]))
        while True:
            match await items.get():
                case QueueLook(state, overview):
                    found = live_queue_answer(served, max_depth, state, overview)
                    yield encode("queue", found.to_json())
                case WorkerRows() as rows:
                    yield encode("rows", rows.to_json())
                case QueueAway():
                    yield encode("away", b"{}")
