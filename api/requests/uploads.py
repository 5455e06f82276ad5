"""An uploaded file: from its multipart form to the storage, in blocks."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from api.answers.errors import BodyTooLargeError, InvalidBodyError, UnsupportedMediaTypeError
from api.answers.problems import Fault
from api.services import Services
from millpond.batches.files import UPLOADED, FileRecord, new_file_id
from millpond.batches.storage import Storage

FORM = "multipart/form-data"
# What a form takes beside the file.
ENVELOPE_BYTES = 64 * 1024
BLOCK_BYTES = 1024 * 1024
MAX_FIELDS = 8
MAX_NAME_CHARS = 255
MIN_TTL_S, MAX_TTL_S = 3_600, 2_592_000
# An upload that takes longer than this loses what it wrote.
UPLOAD_S = 86_400.0
_FIELDS = {"file", "purpose", "expires_after[anchor]", "expires_after[seconds]"}


@dataclass(frozen=True, slots=True)
class Upload:
    file: UploadFile
    filename: str
    ttl_s: float | None


async def keep_upload(request: Request, api: Services, tenant: str) -> FileRecord:
    """Store the file of this request. Raises InvalidBodyError, BodyTooLargeError, FilesFullError."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FORM:
        raise UnsupportedMediaTypeError(FORM)
    settings = api.settings
    try:
        form = await request.form(max_files=1, max_fields=MAX_FIELDS)
    except HTTPException as error:
        raise InvalidBodyError([Fault("body", f"is not {FORM}: {error.detail}")]) from error
    try:
        upload = read_form(form, settings.max_file_bytes)
        id = new_file_id()
        await api.files.doom(id, in_s=UPLOAD_S)
        await _copy(upload.file, api.storage, id)
        return await api.files.add(
            id,
            tenant,
            filename=upload.filename,
            object_name=id,
            num_bytes=upload.file.size or 0,
            ttl_s=settings.file_ttl_s if upload.ttl_s is None else upload.ttl_s,
            max_tenant_bytes=settings.max_tenant_file_bytes,
        )
    finally:
        await form.close()


def read_form(form: FormData, max_file_bytes: int) -> Upload:
    """Raises InvalidBodyError, which names the field, and BodyTooLargeError."""
    faults = [Fault(_shown(name), "is not known here") for name in form if name not in _FIELDS]
    purpose, file = form.get("purpose"), form.get("file")
    if purpose is None:
        faults.append(Fault("purpose", f"is missing; it must be {UPLOADED}"))
    elif purpose != UPLOADED:
        shown = _shown(purpose) if isinstance(purpose, str) else "a file"
        faults.append(Fault("purpose", f"{shown} is not supported; it must be {UPLOADED}"))
    ttl_s = _ttl_s(form, faults)
    if not isinstance(file, UploadFile):
        faults.append(Fault("file", "is missing" if file is None else "is not a file"))
    elif not file.size:
        faults.append(Fault("file", "is empty"))
    if faults:
        raise InvalidBodyError(faults)
    assert isinstance(file, UploadFile)
    if (file.size or 0) > max_file_bytes:
        raise BodyTooLargeError(max_file_bytes, "file")
    return Upload(file, _shown(file.filename or "upload.jsonl", MAX_NAME_CHARS), ttl_s)


def _ttl_s(form: Mapping[str, Any], faults: list[Fault]) -> float | None:
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        faults.append(Fault("expires_after.anchor", "must be created_at"))
    if isinstance(seconds, str) and seconds.isascii() and seconds.isdigit() and len(seconds) < 9:
        if int(seconds) < MIN_TTL_S:
            faults.append(Fault("expires_after.seconds", f"must be {MIN_TTL_S} or more", MIN_TTL_S))
        elif int(seconds) > MAX_TTL_S:
            faults.append(Fault("expires_after.seconds", f"must be {MAX_TTL_S} or less", MAX_TTL_S))
        return float(seconds)
    faults.append(Fault("expires_after.seconds", "must be a whole number"))
    return None


def _shown(text: str, most: int = 64) -> str:
    """Text of a client, made fit to be stored and shown."""
    return "".join(c if c.isprintable() else "?" for c in text)[:most]


async def _copy(file: UploadFile, storage: Storage, name: str) -> None:
    """In a thread: neither the file, which is on disk if it is large, nor the storage waits for us."""
    source = file.file

    def copy() -> None:
        source.seek(0)
        with storage.create(name) as target:
            while block := source.read(BLOCK_BYTES):
                target.write(block)

    await asyncio.to_thread(copy)
