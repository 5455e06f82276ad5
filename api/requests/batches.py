"""The body of ``POST /v1/batches``."""

import re
from typing import Annotated, Literal

from pydantic import Field, StrictInt, field_validator

from millpond.messages import MAX_METADATA_VALUE_CHARS
from millpond.messages.fields import CHECKED, Frozen
from millpond.messages.webhook_url import WebhookUrl
from millpond.openai.requests import Route

MAX_METADATA = 16
MAX_METADATA_KEY_CHARS = 64
HOUR_S, DAY_S = 3_600, 86_400
_WINDOW = re.compile(r"(\d{1,3})([hd])")


class ExpiresAfter(Frozen):
    anchor: Literal["created_at"]
    seconds: Annotated[StrictInt, Field(ge=HOUR_S, le=30 * DAY_S)]


_MetadataKey = Annotated[str, Field(max_length=MAX_METADATA_KEY_CHARS), CHECKED]
_MetadataValue = Annotated[str, Field(max_length=MAX_METADATA_VALUE_CHARS), CHECKED]


class BatchRequest(Frozen):
    input_file_id: Annotated[str, Field(min_length=1, max_length=64), CHECKED]
    endpoint: Route
    completion_window: str = Field(
        description="`1h` to `7d`, in hours or days.",
        json_schema_extra={"pattern": r"^([1-9]\d?|1[0-5]\d|16[0-8])h$|^[1-7]d$", "example": "24h"},
    )
    metadata: Annotated[
        dict[_MetadataKey, _MetadataValue] | None, Field(max_length=MAX_METADATA)
    ] = None
    output_expires_after: ExpiresAfter | None = None
    webhook_url: WebhookUrl | None = Field(
        default=None, description="Told when the batch has ended, by a signed POST."
    )

    @field_validator("completion_window")
    @classmethod
    def _between_an_hour_and_a_week(cls, window: str) -> str:
        if not HOUR_S <= _window_s(window) <= 7 * DAY_S:
            raise ValueError("must be 1h to 7d, in hours or days")
        return window

    @property
    def window_s(self) -> int:
        return _window_s(self.completion_window)


def _window_s(window: str) -> int:
    """0 for what is no window."""
    found = _WINDOW.fullmatch(window)
    return 0 if found is None else int(found[1]) * (HOUR_S if found[2] == "h" else DAY_S)
