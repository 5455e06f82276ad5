"""``/v1/files``: batch files, uploaded and written."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from api.access.tenancy import Reader, Submitter
from api.answers.batch_schemas import FileDeleted, FileList, FileObject
from api.answers.errors import RangeNotSatisfiableError
from api.answers.openai_errors import OpenAIRoute, error_response
from api.description import examples
from api.description.openapi import KEY_PROBLEMS, answer, openai_problems
from api.requests.byte_range import byte_range
from api.requests.uploads import FORM, keep_upload
from api.services import Api
from millpond.batches.files import FileRecord

FILES = "/v1/files"
MAX_LISTED = 10_000
_FORM_BODY: Mapping[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "additionalProperties": False,
                    "dependentRequired": {
                        "expires_after[anchor]": ["expires_after[seconds]"],
                        "expires_after[seconds]": ["expires_after[anchor]"],
                    },
                    "properties": {
                        "file": {"type": "string", "format": "binary", "minLength": 1},
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {
                            "type": "integer",
                            "minimum": 3_600,
                            "maximum": 2_592_000,
                        },
                    },
                }
            }
        },
    }
}

router = APIRouter(tags=["batches"], route_class=OpenAIRoute)


@router.post(
    FILES,
    response_model=FileObject,
    summary="Upload a batch file",
    responses=answer(200, file=examples.FILE)
    | openai_problems(
        *("body_too_large", "unsupported_media_type", "invalid_request", "tenant_files_full"),
        *("storage_unavailable", *KEY_PROBLEMS),
    ),
    openapi_extra=dict(_FORM_BODY),
)
async def upload(request: Request, api: Api, caller: Submitter) -> Response:
    """A JSONL file of up to 200 MB, with the purpose `batch`. Its lines are checked by the batch."""
    return _json(FileObject.of(await keep_upload(request, api, caller.tenant)))


@router.get(
    FILES,
    response_model=FileList,
    summary="List files",
    responses=answer(200, page=examples.FILE_LIST)
    | openai_problems("invalid_request", "file_not_found", *KEY_PROBLEMS),
)
async def list_files(
    api: Api,
    caller: Reader,
    after: Annotated[str | None, Query(description="The last id of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = MAX_LISTED,
    order: Annotated[Literal["asc", "desc"], Query(description="By creation.")] = "desc",
    purpose: Annotated[Literal["batch", "batch_output"] | None, Query()] = None,
) -> Response:
    page = await api.files.page(
        caller.tenant, after=after, limit=limit, newest_first=order == "desc", purpose=purpose
    )
    return _json(FileList.of([FileObject.of(f) for f in page.items], has_more=page.has_more))


@router.get(
    f"{FILES}/{{file_id}}",
    response_model=FileObject,
    summary="Look at a file",
    responses=answer(200, file=examples.FILE) | openai_problems("file_not_found", *KEY_PROBLEMS),
)
async def show_file(api: Api, caller: Reader, file_id: str) -> Response:
    return _json(FileObject.of(await api.files.get(file_id, caller.tenant)))


@router.get(
    f"{FILES}/{{file_id}}/content",
    response_class=Response,
    summary="Read a file",
    responses={
        200: {
            "description": "The lines; of the output of a running batch, those that there are so far",
            "content": {"application/jsonl": {"example": examples.OUTPUT_LINE}},
            "headers": {
                "X-Incomplete": {
                    "description": "`true` while the batch still writes the file",
                    "schema": {"type": "string"},
                },
                "X-Rows": {
                    "description": "Lines so far, of an output",
                    "schema": {"type": "integer"},
                },
            },
        },
        206: {
            "description": "With `Range: bytes=FIRST-`: the bytes from there on. An output only grows, so a "
            "reader that follows it need not read anything twice",
            "content": {"application/jsonl": {"example": examples.OUTPUT_LINE}},
            "headers": {
                "Content-Range": {
                    "description": "Which bytes, of how many so far",
                    "schema": {"type": "string"},
                }
            },
        },
        **openai_problems(
            "file_not_found", "range_not_satisfiable", "storage_unavailable", *KEY_PROBLEMS
        ),
    },
)
async def read_file(
    api: Api,
    caller: Reader,
    file_id: str,
    range_: Annotated[
        str | None,
        Header(alias="Range", description="One range of bytes; anything else reads it all."),
    ] = None,
    if_range: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """While its batch runs, an output grows: `X-Incomplete` says so, and `X-Rows` how far it is."""
    file = await api.files.get(file_id, caller.tenant)
    parts = await api.files.parts(file.id)
    size = sum(num_bytes for _, num_bytes in parts)
    headers = {"Accept-Ranges": "bytes", **_progress(file)}
    try:
        # Files have no validator here, so that of an If-Range cannot be the right one.
        wanted = byte_range(range_ if if_range is None else None, size)
    except RangeNotSatisfiableError as error:
        refusal = error_response(error)
        refusal.headers.update({"Content-Range": f"bytes */{size}", **headers})
        return refusal
    begin, end = wanted or (0, size)
    headers["Content-Length"] = str(end - begin)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    return StreamingResponse(
        api.storage.span(parts, begin, end),
        status_code=200 if wanted is None else 206,
        headers=headers,
        media_type="application/jsonl",
    )


@router.delete(
    f"{FILES}/{{file_id}}",
    response_model=FileDeleted,
    summary="Delete a file",
    responses=answer(200, deleted=examples.FILE_DELETED)
    | openai_problems("file_not_found", "file_in_use", *KEY_PROBLEMS),
)
async def delete_file(api: Api, caller: Submitter, file_id: str) -> Response:
    """A batch that was made from it goes on. The output of one that runs cannot be deleted."""
    await api.files.remove(file_id, caller.tenant)
    return _json(FileDeleted(id=file_id))


def _progress(file: FileRecord) -> dict[str, str]:
    if file.batch is None:
        return {}
    headers = {"X-Batch-Id": file.batch, "X-Rows": str(file.rows)}
    return headers | ({"X-Incomplete": "true"} if file.growing else {})


def _json(found: FileObject | FileList | FileDeleted) -> Response:
    return Response(found.to_json(), media_type="application/json")
