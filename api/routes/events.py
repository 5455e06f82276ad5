"""``/v1/jobs/{id}/events``: what happens to a job, live and from the beginning."""

import re
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from api.access.tenancy import Reader
from api.answers.errors import InvalidBodyError
from api.answers.problems import Fault
from api.answers.sse import EventStream
from api.answers.views import encoded
from api.description.openapi import problems
from api.routes.jobs import check_id
from api.services import Api

FROM_THE_START = "0"
# Nineteen digits always fit into the 64 bits of each part.
_ENTRY_ID = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?")
_PATTERN = {"pattern": f"^{_ENTRY_ID.pattern}$"}

_EXAMPLE = """\
id: 1760000000000-0
event: started
data: {"id":"k3v...","attempt":1}

id: 1760000000050-0
event: delta
data: {"id":"k3v...","attempt":1,"text":"Because","offset":0}

id: 1760000000900-0
event: finished
data: {"id":"k3v...","attempt":1,"result":{"status":"succeeded","text":"Because ..."}}
"""

router = APIRouter(tags=["jobs"])


@router.get(
    "/v1/jobs/{job_id}/events",
    status_code=200,
    response_class=EventStream,
    summary="Follow a job",
    responses={
        200: {
            "description": "`started`, `reasoning`, `delta`, `requeued` (its worker is gone, the text goes "
            "on), `reset` (forget the text), `finished` (last)",
            "content": {"text/event-stream": {"example": _EXAMPLE}},
        },
        **problems("job_not_found", "invalid_request", "too_many_streams", "queue_unavailable"),
    },
)
async def follow(
    api: Api,
    caller: Reader,
    job_id: str,
    after: Annotated[
        str, Query(description="Only events after this one.", json_schema_extra=_PATTERN)
    ] = FROM_THE_START,
    last_event_id: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            description="The same; counts before `after`.",
            json_schema_extra=_PATTERN,
        ),
    ] = None,
) -> Response:
    """Ends after `finished`: a browser's EventSource should be closed then, else it comes back."""
    id = check_id(job_id)
    start = _check_entry("after", after)
    if last_event_id is not None:
        start = _check_entry("Last-Event-ID", last_event_id)
    served = await api.directory.holding(id, caller.tenant)
    await served.results.get(id, tenant=caller.tenant)
    events = served.results.subscribe(id, start, tenant=caller.tenant)
    shown = encoded(events, show_worker=caller.sees_workers)
    return EventStream(shown, api.closing, api.open_answers.open(caller))


def _check_entry(field: str, value: str) -> str:
    """Raises InvalidBodyError if it is not the id of a stream entry."""
    if not _ENTRY_ID.fullmatch(value):
        raise InvalidBodyError(
            [Fault(field, "must be the id of an event, such as 1760000000000-0")]
        )
    return value
