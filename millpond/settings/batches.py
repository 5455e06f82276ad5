"""Where batch files are kept, and for how long."""

from typing import Annotated

from pydantic import BaseModel, Field

from millpond.settings.types import Count

MAX_FILE_BYTES = 200 * 1024 * 1024


class BatchSettings(BaseModel):
    """Uploaded files, and those that batches write."""

    files_url: str | None = Field(
        default=None,
        description="A folder as fsspec names it, as s3://bucket/folder; else one in data_dir.",
    )
    max_file_bytes: Annotated[int, Field(ge=1, le=MAX_FILE_BYTES)] = Field(
        default=MAX_FILE_BYTES, description="Of one uploaded file."
    )
    file_ttl_s: Annotated[int, Field(ge=3600)] = Field(
        default=30 * 86_400, description="How long a file is kept that says nothing about it."
    )
    max_tenant_file_bytes: Count = Field(
        default=20 * 2**30, description="Of a tenant's uploaded files together."
    )
