"""What a client asks for: one generation job."""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import (
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    StrictBool,
    StrictFloat,
    model_validator,
)
from typing_extensions import TypeAliasType

from millpond.messages.fields import CHECKED, PROTOCOL_VERSION, Frozen, TokenId
from millpond.messages.sampling_params import SamplingParams
from millpond.messages.webhook_url import WebhookUrl

MAX_PROMPT_CHARS = 1_000_000
MAX_MESSAGES = 1_000
MAX_PROMPT_TOKEN_IDS = 131_072
MAX_METADATA_ITEMS = 16
MAX_METADATA_VALUE_CHARS = 512
MAX_DEADLINE_S = 7 * 24 * 3600.0


class Priority(StrEnum):
    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BATCH = "batch"


class Truncation(StrEnum):
    """What to do with a prompt over the token limit: refuse it, or cut off that part."""

    ERROR = "error"
    LEFT = "left"
    RIGHT = "right"
    MIDDLE = "middle"


# Stops at the first bad id: a hostile list of a million would produce a million errors. A separate alias,
# because FailFast is not hashable and so cannot be part of a union.
PromptTokenIds = TypeAliasType(
    "PromptTokenIds",
    Annotated[list[TokenId], Field(min_length=1, max_length=MAX_PROMPT_TOKEN_IDS), FailFast()],
)


class TextPart(Frozen):
    """A piece of a message's content, as OpenAI's clients send it."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]


def _join_parts(content: Any) -> Any:
    """Parts are put together as they are; anything but text is refused."""
    if not isinstance(content, list):
        return content
    texts = []
    for i, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise ValueError(f'part {i} must have the type "text"; nothing else is read here')
        if part.keys() != TextPart.model_fields.keys() or not isinstance(part["text"], str):
            raise ValueError(f"part {i} must have a text, and nothing but type and text")
        texts.append(part["text"])
    return "".join(texts)


class Message(Frozen):
    role: Literal["system", "user", "assistant"]
    content: Annotated[
        str,
        Field(max_length=MAX_PROMPT_CHARS),
        CHECKED,
        BeforeValidator(
            _join_parts,
            json_schema_input_type=Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
            | list[TextPart],
        ),
    ] = Field(description="A text, or a list of text parts, which are joined.")


def _one_of(types: dict[str, str]) -> dict[str, Any]:
    """JSON Schema for: one of these fields is given, and is not null."""
    return {
        "oneOf": [
            {"required": [name], "properties": {name: {"type": type}}}
            for name, type in types.items()
        ]
    }


class JobRequest(SamplingParams):
    """One generation job. Exactly one of ``prompt``, ``messages`` and ``token_ids`` is given.

    A ``prompt`` is one user turn, rendered by the model's chat template under the system prompt; with
    ``raw`` the model continues the text as it is.
    """

    model_config = ConfigDict(
        json_schema_extra=_one_of({"prompt": "string", "messages": "array", "token_ids": "array"})
    )

    model: Annotated[str, Field(min_length=1, max_length=128), CHECKED] | None = None
    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS), CHECKED] | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    token_ids: PromptTokenIds | None = None
    raw: StrictBool = False
    system: Annotated[str, Field(max_length=MAX_PROMPT_CHARS), CHECKED] | None = Field(
        default=None, description="Overrides the preset's system prompt; empty means none."
    )
    truncate: Truncation = Truncation.ERROR
    priority: Priority = Priority.NORMAL
    deadline_s: Annotated[StrictFloat, Field(gt=0.0, le=MAX_DEADLINE_S)] | None = Field(
        default=None, description="Seconds after acceptance at which an unfinished job expires."
    )
    cache_salt: Annotated[str, Field(min_length=1, max_length=128), CHECKED] | None = Field(
        default=None,
        description="Jobs with different salts share nothing in the prefix cache. Where keys are asked for, "
        "tenants share nothing in any case.",
    )
    metadata: Annotated[
        dict[
            Annotated[str, Field(min_length=1, max_length=64), CHECKED],
            Annotated[str, Field(max_length=MAX_METADATA_VALUE_CHARS), CHECKED],
        ],
        Field(max_length=MAX_METADATA_ITEMS),
    ] = Field(default_factory=dict)
    webhook_url: WebhookUrl | None = Field(
        default=None, description="Told when the job has ended, by a signed POST."
    )
    stream: StrictBool = Field(
        default=True, description="Keep an event stream of the text as it grows, for live readers."
    )

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        given = [n for n in ("prompt", "messages", "token_ids") if getattr(self, n) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none"
            raise ValueError(
                f"prompt: give exactly one of prompt, messages and token_ids (found {found})"
            )
        if self.raw and self.prompt is None:
            raise ValueError("raw: applies to prompt only")
        if self.system is not None and (self.raw or self.prompt is None):
            raise ValueError("system: applies to a templated prompt only; put it into messages")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt: must not be blank")
        return self

    def to_json(self) -> bytes:
        """The canonical body: only the fields that differ from their defaults, keys sorted.

        The metadata, if any, comes first, so that a script can cut it out without decoding the body.
        """
        fields = {"v": PROTOCOL_VERSION, **self.model_dump(mode="json", exclude_defaults=True)}
        metadata = fields.pop("metadata", None)
        if "response_format" in fields:
            # The order of a schema's properties is the order in which they are written.
            fields["response_format"] = orjson.Fragment(orjson.dumps(fields["response_format"]))
        body = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
        if metadata is None:
            return body
        return b'{"metadata":' + _sorted_json(metadata) + b"," + body[1:]

    @property
    def metadata_bytes(self) -> int:
        """Size of the metadata in the canonical body; 0 without any."""
        return len(_sorted_json(self.metadata)) if self.metadata else 0

    @classmethod
    def from_json(cls, body: bytes | str) -> Self:
        """Read a stored body. Raises ValueError on a body of another version or a bad one."""
        fields = orjson.loads(body)
        version = fields.pop("v", None) if isinstance(fields, dict) else None
        if version != PROTOCOL_VERSION:
            raise ValueError(
                f"v: protocol version {version!r}, this side speaks {PROTOCOL_VERSION}"
            )
        return cls.model_validate(fields)


def _sorted_json(value: dict[str, str]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
