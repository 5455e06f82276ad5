"""``/v1/batches``: files of requests, run when there is time."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from api.access.tenancy import Reader, Submitter
from api.answers.batch_schemas import BatchList, BatchObject
from api.answers.openai_errors import OpenAIRoute
from api.description import examples
from api.description.openapi import KEY_PROBLEMS, answer, json_body, openai_problems
from api.requests.batches import BatchRequest
from api.requests.bodies import parse, read_json
from api.services import Api
from millpond.batches.records import NewBatch, new_batch_id
from millpond.batches.steps import next_step
from millpond.messages import Priority

BATCHES = "/v1/batches"
DEFAULT_PAGE = 20
MAX_PAGE = 100
_EXAMPLE: dict[str, Any] = {
    "batch": {
        "input_file_id": "file-5f0c3a9be1d24786a0c1b2d3",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
}

router = APIRouter(tags=["batches"], route_class=OpenAIRoute)


@router.post(
    BATCHES,
    response_model=BatchObject,
    summary="Run a batch file",
    responses=answer(200, batch=examples.BATCH)
    | openai_problems(
        *("invalid_json", "body_too_large", "unsupported_media_type", "invalid_request"),
        *("file_not_found", "priority_forbidden", *KEY_PROBLEMS),
    ),
    openapi_extra=json_body(BatchRequest, _EXAMPLE),
)
async def create_batch(request: Request, api: Api, caller: Submitter) -> Response:
    """Its lines are checked first; one that is bad fails the batch. Rows run at the priority `batch`."""
    api.background_jobs.check_possible()
    caller.check_priority(Priority.BATCH)
    asked = await parse(BatchRequest, await read_json(request))
    await api.webhooks.check(asked.webhook_url)
    after = asked.output_expires_after
    batch = await api.batches.create(
        new_batch_id(),
        NewBatch(
            tenant=caller.tenant,
            endpoint=asked.endpoint,
            input_file=asked.input_file_id,
            window=asked.completion_window,
            window_s=asked.window_s,
            metadata=asked.metadata,
            output_ttl_s=None if after is None else float(after.seconds),
            tenant_limit=caller.unfinished_jobs,
            tenant_bytes=caller.stored_bytes,
            webhook_url=asked.webhook_url,
        ),
    )
    await api.background_jobs.enqueue(next_step(batch))
    return _json(BatchObject.of(batch))


@router.get(
    BATCHES,
    response_model=BatchList,
    summary="List batches",
    responses=answer(200, page=examples.BATCH_LIST)
    | openai_problems("invalid_request", "batch_not_found", *KEY_PROBLEMS),
)
async def list_batches(
    api: Api,
    caller: Reader,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = DEFAULT_PAGE,
) -> Response:
    """The newest first."""
    page = await api.batches.page(caller.tenant, after=after, limit=limit)
    return _json(BatchList.of([BatchObject.of(b) for b in page.items], has_more=page.has_more))


@router.get(
    f"{BATCHES}/{{batch_id}}",
    response_model=BatchObject,
    summary="Look at a batch",
    responses=answer(200, batch=examples.BATCH) | openai_problems("batch_not_found", *KEY_PROBLEMS),
)
async def show_batch(api: Api, caller: Reader, batch_id: str) -> Response:
    return _json(BatchObject.of(await api.batches.get(batch_id, caller.tenant)))


@router.post(
    f"{BATCHES}/{{batch_id}}/cancel",
    response_model=BatchObject,
    summary="Cancel a batch",
    responses=answer(200, batch=examples.BATCH)
    | openai_problems("batch_not_found", "batch_ended", *KEY_PROBLEMS),
)
async def cancel_batch(api: Api, caller: Submitter, batch_id: str) -> Response:
    """What has ended is kept in its files; the rest is not run."""
    batch = await api.batches.cancel(batch_id, caller.tenant)
    return _json(BatchObject.of(batch))


def _json(found: BatchObject | BatchList) -> Response:
    return Response(found.to_json(), media_type="application/json")
