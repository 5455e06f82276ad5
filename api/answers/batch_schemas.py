"""OpenAI's objects of files and batches, as the routes answer with them."""

from typing import Any, Literal

from pydantic import Field

from api.answers.schemas import Answer
from millpond.batches.files import FileRecord
from millpond.batches.records import BatchRecord, BatchStatus


class OpenAIAnswer(Answer):
    """As OpenAI's API does, it names the fields that have no value, too."""

    def to_json(self) -> bytes:
        return self.model_dump_json().encode()


class FileObject(OpenAIAnswer):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["uploaded", "processed"] = Field(
        description="`uploaded` for the output of a batch that is still written."
    )
    status_details: str | None = None

    @classmethod
    def of(cls, file: FileRecord) -> "FileObject":
        return cls.model_validate(
            {
                "id": file.id,
                "bytes": file.bytes,
                "created_at": file.created_ms // 1000,
                "expires_at": None if file.expires_ms is None else file.expires_ms // 1000,
                "filename": file.filename,
                "purpose": file.purpose,
                "status": "uploaded" if file.growing else "processed",
            }
        )


class FileList(OpenAIAnswer):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, data: list[FileObject], *, has_more: bool) -> "FileList":
        return cls(data=data, has_more=has_more, **_ends(data))


class FileDeleted(OpenAIAnswer):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def _ends(data: list[Any]) -> dict[str, str | None]:
    return {
        "first_id": data[0].id if data else None,
        "last_id": data[-1].id if data else None,
    }


class BatchErrorEntry(OpenAIAnswer):
    code: str
    line: int | None = None
    message: str
    param: str | None = None


class BatchErrors(OpenAIAnswer):
    object: Literal["list"] = "list"
    data: list[BatchErrorEntry]


class BatchRequestCounts(OpenAIAnswer):
    completed: int
    failed: int
    total: int


class InputTokensDetails(OpenAIAnswer):
    cached_tokens: int = 0


class OutputTokensDetails(OpenAIAnswer):
    reasoning_tokens: int = 0


class BatchUsage(OpenAIAnswer):
    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class BatchObject(OpenAIAnswer):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    model: str | None = Field(default=None, description="If all lines name one.")
    output_file_id: str | None = Field(
        default=None, description="As soon as it has a line; it grows while the batch runs."
    )
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: BatchRequestCounts
    usage: BatchUsage
    metadata: dict[str, str] | None = None

    @classmethod
    def of(cls, batch: BatchRecord) -> "BatchObject":
        return cls.model_validate(
            {
                "id": batch.id,
                "endpoint": batch.endpoint,
                "errors": _errors(batch),
                "input_file_id": batch.input_file,
                "completion_window": batch.window,
                "status": batch.status,
                "model": batch.models[0] if len(batch.models) == 1 else None,
                "output_file_id": batch.output_file,
                "error_file_id": batch.error_file,
                "created_at": batch.created_ms // 1000,
                "expires_at": batch.expires_ms // 1000,
                "request_counts": {
                    "completed": batch.completed,
                    "failed": batch.failed,
                    "total": batch.total,
                },
                "usage": {
                    "input_tokens": batch.prompt_tokens,
                    "output_tokens": batch.output_tokens,
                    "total_tokens": batch.prompt_tokens + batch.output_tokens,
                },
                "metadata": batch.metadata,
                **{f"{status}_at": at_ms // 1000 for status, at_ms in batch.at.items()},
            }
        )


class BatchList(OpenAIAnswer):
    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, data: list[BatchObject], *, has_more: bool) -> "BatchList":
        return cls(data=data, has_more=has_more, **_ends(data))


def _errors(batch: BatchRecord) -> BatchErrors | None:
    if not batch.problems:
        return None
    return BatchErrors(
        data=[
            BatchErrorEntry(
                code=problem.code,
                line=problem.line,
                message=problem.message,
                param=problem.param,
            )
            for problem in batch.problems
        ]
    )
