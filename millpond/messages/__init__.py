"""What travels between client, queue and worker, as typed and versioned JSON.

One definition serves every side: the API validates HTTP bodies with `JobRequest`, the worker reads it from
Redis, the client builds it. All models are frozen, and refuse unknown fields on input.
"""

from millpond.messages.events import (
    EventType,
    JobEvent,
)
from millpond.messages.fields import (
    PROTOCOL_VERSION,
)
from millpond.messages.ids import (
    JOB_ID_PATTERN,
    TENANT_PATTERN,
    choice_seed,
    job_id_from_key,
    new_job_id,
    seed_from_id,
)
from millpond.messages.requests import (
    MAX_METADATA_ITEMS,
    MAX_METADATA_VALUE_CHARS,
    MAX_PROMPT_CHARS,
    JobRequest,
    Message,
    Priority,
    PromptTokenIds,
    Truncation,
)
from millpond.messages.results import (
    Choice,
    CompletionTokensDetails,
    FinishReason,
    GeneratedToken,
    JobError,
    JobResult,
    JobStatus,
    Receipt,
    TokenLogprob,
    Usage,
    VotedAnswer,
    VoteResult,
)
from millpond.messages.votes import VoteKind

__all__ = [
    "JOB_ID_PATTERN",
    "MAX_METADATA_ITEMS",
    "MAX_METADATA_VALUE_CHARS",
    "MAX_PROMPT_CHARS",
    "PROTOCOL_VERSION",
    "TENANT_PATTERN",
    "Choice",
    "CompletionTokensDetails",
    "EventType",
    "FinishReason",
    "GeneratedToken",
    "JobError",
    "JobEvent",
    "JobRequest",
    "JobResult",
    "JobStatus",
    "Message",
    "Priority",
    "PromptTokenIds",
    "Receipt",
    "TokenLogprob",
    "Truncation",
    "Usage",
    "VoteKind",
    "VoteResult",
    "VotedAnswer",
    "choice_seed",
    "job_id_from_key",
    "new_job_id",
    "seed_from_id",
]
