"""What travels through the queue: requests, results and events, as versioned JSON.

One definition serves every side: the API validates HTTP bodies with `JobRequest`, the worker reads
it from Redis, the client builds it. All models are frozen and refuse unknown fields on input.
"""

import base64
import hashlib
import os
import re
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

from millpond.messages.fields import CHECKED, Frozen, Stored, TokenId
from millpond.messages.sampling_params import MAX_SEED, SamplingParams

PROTOCOL_VERSION = 1

MAX_PROMPT_CHARS = 1_000_000
MAX_MESSAGES = 1_000
MAX_PROMPT_TOKEN_IDS = 131_072
MAX_METADATA_ITEMS = 16
MAX_METADATA_VALUE_CHARS = 512
MAX_DEADLINE_S = 7 * 24 * 3600.0

JOB_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
TENANT_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")


_FIVE_BITS = b"abcdefghijklmnopqrstuvwxyz234567" * 8  # the character of a byte's low five bits


def new_job_id() -> str:
    """120 random bits as 24 lower-case base32 characters."""
    return os.urandom(24).translate(_FIVE_BITS).decode("ascii")


def job_id_from_key(tenant: str, idempotency_key: str) -> str:
    """The id of the job that this tenant submits under this idempotency key.

    Deriving the id makes idempotency a property of the job record alone: the second submit of a key
    finds the first one's record. 120 bits of SHA-256 over ``tenant NUL key``.
    """
    digest = hashlib.sha256(f"{tenant}\0{idempotency_key}".encode()).digest()[:15]
    return base64.b32encode(digest).decode("ascii").lower()


def seed_from_id(job_id: str) -> int:
    """The seed of a job without one: derived from its id, so every attempt writes the same text."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:8]) & MAX_SEED


def choice_seed(seed: int, index: int) -> int:
    """The seed of one choice of a job; the first choice has the job's own."""
    return seed if index == 0 else seed_from_id(f"{seed}/{index}")


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def terminal(self) -> bool:
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING)


class FinishReason(StrEnum):
    """Why a generation ended; never mixed with the job's status."""

    STOP = "stop"
    LENGTH = "length"
    LOOP = "loop"
    CANCELLED = "cancelled"
    ERROR = "error"


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
    metadata: Annotated[
        dict[
            Annotated[str, Field(min_length=1, max_length=64), CHECKED],
            Annotated[str, Field(max_length=MAX_METADATA_VALUE_CHARS), CHECKED],
        ],
        Field(max_length=MAX_METADATA_ITEMS),
    ] = Field(default_factory=dict)
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
        """The canonical body: only the fields that differ from their defaults, keys sorted."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        return orjson.dumps({"v": PROTOCOL_VERSION, **fields}, option=orjson.OPT_SORT_KEYS)

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


class Usage(Stored):
    """The prompt counts once, however many texts were generated from it."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class TokenLogprob(Stored):
    """``token`` is the text of this token by itself; half a character appears as U+FFFD."""

    token_id: int
    token: str
    logprob: float


class GeneratedToken(TokenLogprob):
    """A token of the result, with the most likely tokens at its position, best first."""

    top: list[TokenLogprob]


class Choice(Stored):
    """One of several texts of a job."""

    index: int
    finish_reason: FinishReason
    text: str
    token_ids: list[int] | None = None
    logprobs: list[GeneratedToken] | None = None


class JobError(Stored):
    code: str
    message: str


class Receipt(Stored):
    """How a result was made. Times are milliseconds; shares are between 0 and 1."""

    attempt: int
    worker: str | None = Field(
        default=None, description="Over HTTP only for keys with the scope admin."
    )
    model: str
    engine: str
    backend: str | None = Field(
        default=None,
        description="What computed: native with its instructions, torch with its device, remote, "
        "simulated. None in receipts from before it was told.",
    )
    dtype: str
    device: str
    seed: int
    claimed_ms: int = Field(description="The server's clock at this attempt's claim.")
    queue_wait_ms: float = Field(description="From acceptance to this attempt's claim.")
    window_jobs: int = Field(description="Jobs claimed in the same window.")
    group_rows: int = Field(description="Rows prefilled in the same group.")
    batch_rows: float = Field(description="Mean rows in the batch while this row was decoding.")
    first_token_ms: float = Field(description="From claim to the first token.")
    run_ms: float = Field(description="From claim to the last token.")
    prompt_truncated: bool = False
    adapter: str | None = None


class JobResult(Stored):
    """The final state of a job, stored under its id until its time to live ends."""

    v: int = PROTOCOL_VERSION
    id: str
    status: JobStatus
    finish_reason: FinishReason
    text: str = ""
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    logprobs: list[GeneratedToken] | None = Field(
        default=None, description="One entry for each generated token, the end token included."
    )
    choices: list[Choice] | None = Field(
        default=None,
        description="All texts, in order, when n is above 1; text is the first of them.",
    )
    usage: Usage | None = None
    error: JobError | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    receipt: Receipt | None = None
    finished_ms: int | None = Field(default=None, description="The server's clock, set on commit.")


class EventType(StrEnum):
    STARTED = "started"
    DELTA = "delta"
    RESET = "reset"
    FINISHED = "finished"


class JobEvent(Stored):
    """One entry of a job's event stream and the payload of its channel.

    ``started``: an attempt began. ``delta``: append ``text``, which begins at character ``offset`` of
    the attempt's text, or of the choice ``index``. ``reset``: the attempt is void; discard its text.
    ``finished``: the last event; ``result`` is the stored result.
    """

    v: int = PROTOCOL_VERSION
    type: EventType
    id: str
    event_id: str = Field(default="", description="The stream entry's id, for replay.")
    attempt: int = 0
    text: str = ""
    offset: int = 0
    index: int | None = Field(default=None, description="The choice, when n is above 1.")
    reason: str = ""
    result: JobResult | None = None
