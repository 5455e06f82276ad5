"""The routes' answers as models, which also describe them in OpenAPI."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from millpond.messages import JobError, JobResult, JobStatus, Priority


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True)

    def to_json(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode()


class ProblemFault(Answer):
    field: str = Field(description="Path of the field, parameter or header.")
    message: str
    limit: float | None = Field(default=None, description="The bound that was passed.")


class OpenAIFault(Answer):
    message: str
    type: str
    param: str | None = Field(default=None, description="The field that is wrong.")
    code: str = Field(description="Stable and machine-readable.")


class ProblemBody(Answer):
    """RFC 9457 problem details, and OpenAI's `error` beside them."""

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable and machine-readable.")
    errors: list[ProblemFault] | None = None
    retry_after_s: int | None = None
    violated_policies: list[str] | None = Field(
        default=None,
        alias="violated-policies",
        description="The limits of the key that were passed.",
    )
    error: OpenAIFault | None = Field(
        default=None, description="The same as OpenAI's clients look for it; not in a bulk's items."
    )


class OpenAIErrorBody(Answer):
    """OpenAI's shape of an error."""

    error: OpenAIFault


class Links(Answer):
    self: str
    events: str


class JobAccepted(Answer):
    id: str
    status: JobStatus
    links: Links
    channel: str = Field(description="The Redis channel on which the job's events are published.")


class WaitReason(Answer):
    code: Literal[
        "no_worker", "worker_loading", "retry_delay", "behind_others", "window_open", "slots_busy"
    ]
    message: str


class JobState(Answer):
    """A job's current state. Times are milliseconds of Redis' clock."""

    id: str
    status: JobStatus
    priority: Priority
    created_ms: int
    attempts: int = Field(description="Times that a worker took it.")
    claimed_ms: int | None = None
    worker: str | None = None
    cancelling: bool | None = Field(default=None, description="Set while a cancel is under way.")
    position: int | None = Field(
        default=None, description="Place among the tenant's own; 1 is next."
    )
    ahead: int | None = Field(default=None, description="Queued jobs that go first, about.")
    estimate_s: float | None = Field(
        default=None, description="Guess of the wait, from the workers' recent pace."
    )
    reason: WaitReason | None = Field(default=None, description="Why it is still waiting.")
    result: JobResult | None = Field(default=None, description="Once it has ended.")
    links: Links


class ListedJob(Answer):
    """A line of a list."""

    id: str
    status: JobStatus
    priority: Priority
    created_ms: int
    attempts: int
    claimed_ms: int | None = None
    finished_ms: int | None = None
    deaths: int | None = Field(
        default=None, description="Of dead letters: workers that died while they ran it alone."
    )
    error: JobError | None = Field(default=None, description="Of dead letters.")
    links: Links


class JobPage(Answer):
    jobs: list[ListedJob]
    cursor: str | None = Field(default=None, description="Leads to the next page, if there is one.")


class DeadLetter(ListedJob):
    request: dict[str, Any] = Field(
        description="What was asked: a JobRequest, without the fields at their defaults."
    )


class CancelAnswer(Answer):
    id: str
    status: JobStatus
    cancelling: bool = Field(description="A worker is about to end it.")


class BulkItem(Answer):
    """``id`` and ``status`` for an accepted job, ``problem`` for a refused one."""

    index: int
    status_code: int
    id: str | None = None
    status: JobStatus | None = None
    replayed: bool | None = None
    problem: dict[str, Any] | None = None


class BulkAnswer(Answer):
    accepted: int
    refused: int
    jobs: list[BulkItem]


class WorkerEntry(Answer):
    """One entry of the worker registry; fields may be added."""

    model_config = ConfigDict(frozen=True, extra="allow")

    id: str
    alive: bool
    beat_age_ms: int


class QueueAnswer(Answer):
    queue: str
    model: str
    depth: int
    max_depth: int
    queued: dict[Priority, int]
    running: int
    delayed: int = Field(description="Retries that wait for their time; part of the depth.")
    dead: int
    unfinished: dict[str, int] = Field(description="Queued and running jobs of each tenant.")
    accepted: dict[Priority, int] = Field(description="Since the queue was made.")
    done: dict[JobStatus, int] = Field(description="Since the queue was made.")
    jobs_per_s: float
    estimate_s: float | None = Field(
        default=None, description="Time to work off the depth at the recent pace."
    )
    workers: list[WorkerEntry]


class LeasesEntry(Answer):
    number: int
    first_ends_in_ms: int = Field(description="Unless it is renewed.")


class LiveQueueAnswer(QueueAnswer):
    """The queue as its watchers see it, once a second. Of many tenants those that are served first."""

    lanes: dict[str, dict[Priority, int]] = Field(description="Waiting jobs of each tenant.")
    leases: dict[str, LeasesEntry] = Field(description="Held by each worker.")


class SamplingDefaults(Answer):
    """What a request gets that does not say it itself."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    max_tokens: int


class ModelEntry(Answer):
    id: str
    object: Literal["model"] = "model"
    owned_by: str = "millpond"
    ready: bool = Field(description="A living worker has it loaded.")
    workers: int
    engine: str | None = None
    dtype: str | None = None
    device: str | None = None
    slots: int | None = None
    context_tokens: int | None = None
    max_prompt_tokens: int
    max_output_tokens: int
    chat: bool = Field(description="False: a base model, for raw prompts and token ids only.")
    system_prompt: str = Field(description="The role, unless a request has its own; may be empty.")
    languages: list[str] = Field(
        description="In which prompts work best, as BCP 47 tags; empty if nobody knows."
    )
    adapters: list[str]
    sampling: SamplingDefaults


class ModelList(Answer):
    object: Literal["list"] = "list"
    data: list[ModelEntry]


class Health(Answer):
    status: Literal["ok"] = "ok"


class Readiness(Answer):
    """``ready``: jobs are accepted, and some worker is alive. ``reason`` says why not.

    Whether they are worked on at once, ``workers_ready`` tells.
    """

    ready: bool
    reason: str | None = None
    redis: bool
    tokenizer: bool
    workers_alive: int
    workers_ready: int
