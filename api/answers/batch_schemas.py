"""OpenAI's objects of files and batches, as the routes answer with them."""

from typing import Any, Literal

from pydantic import Field

from api.answers.schemas import Answer
from millpond.batches.files import FileRecord


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
