"""What is stored of a job that has ended."""

from enum import StrEnum
from typing import Self

from pydantic import Field

from millpond.messages.fields import PROTOCOL_VERSION, Stored


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


class CompletionTokensDetails(Stored):
    """``reasoning_tokens`` are those before the answers, with the markers around the reasoning."""

    reasoning_tokens: int


class Usage(Stored):
    """The prompt counts once, however many texts were generated from it."""

    prompt_tokens: int
    completion_tokens: int
    completion_tokens_details: CompletionTokensDetails | None = Field(
        default=None, description="If the model reasoned."
    )

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
    reasoning_content: str = ""
    token_ids: list[int] | None = None
    logprobs: list[GeneratedToken] | None = None


class VotedAnswer(Stored):
    """``texts`` are the indexes of the choices that give this answer."""

    answer: str
    count: int
    texts: list[int]


class VoteResult(Stored):
    """How the texts of a job voted. Those that failed, were cut by a limit, or say no answer have no vote."""

    answer: str | None = Field(
        default=None,
        description="Of most texts; of answers with equally many, that of the text with the lowest "
        "index. None: no text has one.",
    )
    winner: int | None = Field(
        default=None,
        description="The first choice with that answer; the result's text is its.",
    )
    answers: list[VotedAnswer] = Field(description="The winner first.")
    cancelled: list[int] = Field(
        description="Choices that were cut off because they could not change the answer any more."
    )


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
        description="What computed: native with its kernel set, torch with its device, remote, "
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
    resumed_tokens: int = Field(
        default=0,
        description="Tokens of the result that were generated under earlier claims, and kept.",
    )
    adapter: str | None = None
    cached_tokens: int = Field(
        default=0,
        description="How many of the prompt's tokens were in the prefix cache and did not have to be read.",
    )
    saved_tokens: int | None = Field(
        default=None,
        description="About how many tokens the texts that a vote cancelled would have had, too; "
        "guessed from the lengths of the others.",
    )


class JobResult(Stored):
    """The final state of a job, stored under its id until its time to live ends."""

    v: int = PROTOCOL_VERSION
    id: str
    status: JobStatus
    finish_reason: FinishReason
    text: str = ""
    reasoning_content: str = Field(
        default="", description="What the model thought before the text, without its markers."
    )
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    logprobs: list[GeneratedToken] | None = Field(
        default=None, description="One entry for each generated token, the end token included."
    )
    choices: list[Choice] | None = Field(
        default=None,
        description="All texts, in order, when n is above 1; text is the first of them, or the one that "
        "won the vote.",
    )
    vote: VoteResult | None = None
    usage: Usage | None = None
    error: JobError | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    receipt: Receipt | None = None
    finished_ms: int | None = Field(default=None, description="The server's clock, set on commit.")

    def without_worker(self) -> Self:
        """For readers who may not see the names of workers, which contain host names."""
        if self.receipt is None:
            return self
        receipt = self.receipt.model_copy(update={"worker": None})
        return self.model_copy(update={"receipt": receipt})
