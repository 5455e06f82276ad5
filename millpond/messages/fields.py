"""The base classes of the messages, and field types that several of them share."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt

PROTOCOL_VERSION = 1


def _check_characters(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain the NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain lone surrogates") from None
    return text


# Comes behind the length in a field's annotation: lengths are then told in characters.
CHECKED = AfterValidator(_check_characters)
TokenId = Annotated[StrictInt, Field(ge=0, lt=2**31)]


class Frozen(BaseModel):
    """Base of messages that this side writes or accepts from clients: immutable, no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Stored(BaseModel):
    """Base of what is read back from Redis: fields added by a newer writer are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def to_json(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode()
