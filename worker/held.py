"""One job in the worker's hands: what was claimed, how far it is, and the result it will have."""

import time
from dataclasses import dataclass, field
from typing import Any

from millpond.claims import ClaimedJob
from millpond.messages import (
    FinishReason,
    GeneratedToken,
    JobError,
    JobRequest,
    JobResult,
    JobStatus,
    Receipt,
    TokenLogprob,
    Usage,
    seed_from_id,
)
from millpond.presets import Preset
from millpond.prompts import PreparedPrompt
from millpond.tokenization import Tokenizer
from worker.engines.base import EngineInfo, Finished, GenerationRequest, RowStats, Sampling

# JSON has no minus infinity; OpenAI writes this for a token that cannot be.
LEAST_LOGPROB = -9999.0

_MESSAGES = {
    JobStatus.CANCELLED: ("cancelled", "cancelled by the client"),
    JobStatus.EXPIRED: ("deadline_exceeded", "the deadline passed before the job was finished"),
}


@dataclass(slots=True)
class HeldJob:
    """Owned by the Worker from claim to commit; the LeaseKeeper only sets ``end_as`` and ``lost``.

    ``claimed_s`` and ``first_token_s`` are this process's monotonic clock.
    """

    claimed: ClaimedJob
    request: JobRequest
    prompt: PreparedPrompt
    window_jobs: int
    seed: int = field(init=False)
    claimed_s: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    # Set when the job is to end early, and how it then counts.
    end_as: JobStatus | None = None
    lost: bool = False
    # With the engine, as a row that runs or waits there.
    admitted: bool = False
    # Its last word is with the Committer; the lease is kept, but what befalls it matters no more.
    ended: bool = False
    # Streamed text: what waits to be written, and how many characters were written before.
    unwritten: str = ""
    written_chars: int = 0
    written_s: float = 0.0

    def __post_init__(self) -> None:
        own = self.request.seed
        self.seed = seed_from_id(self.id) if own is None else own

    @property
    def id(self) -> str:
        return self.claimed.id

    @property
    def row(self) -> str:
        return self.claimed.row

    @property
    def over(self) -> bool:
        """Whether it is to end without, or without further, running."""
        return self.lost or self.end_as is not None

    @property
    def expected_tokens(self) -> int:
        """Tokens of KV cache to reserve for it at first: its prompt and the predicted output."""
        predicted = self.claimed.predicted_tokens
        if predicted is None:
            return self.prompt.budget_tokens
        return min(self.prompt.budget_tokens, len(self.prompt.token_ids) + predicted)

    def generation_request(self, preset: Preset) -> GenerationRequest:
        """The row for the engine, every default resolved by the preset."""
        request = self.request

        def chosen(value: float | None, default: float) -> float:
            return default if value is None else value

        return GenerationRequest(
            id=self.row,
            prompt_token_ids=self.prompt.token_ids,
            predicted_tokens=self.claimed.predicted_tokens,
            sampling=Sampling(
                max_tokens=self.prompt.max_tokens,
                min_tokens=min(request.min_tokens, self.prompt.max_tokens),
                seed=self.seed,
                temperature=chosen(request.temperature, preset.temperature),
                top_p=chosen(request.top_p, preset.top_p),
                top_k=preset.top_k if request.top_k is None else request.top_k,
                min_p=chosen(request.min_p, preset.min_p),
                repetition_penalty=chosen(request.repetition_penalty, preset.repetition_penalty),
                presence_penalty=request.presence_penalty,
                frequency_penalty=request.frequency_penalty,
                logit_bias=tuple(request.logit_bias.items()),
                stop=tuple(request.stop),
                stop_token_ids=tuple(request.stop_token_ids),
                ignore_eos=request.ignore_eos,
                loop_repeats=request.loop_repeats,
                logprobs=request.logprobs,
            ),
            messages=self.prompt.messages,
            adapter=request.adapter,
        )

    def result(
        self, finished: Finished, worker: str, info: EngineInfo, tokenizer: Tokenizer
    ) -> JobResult:
        """The stored result of a row that ended."""
        request = self.request
        status, error = self._outcome(finished)
        usage = finished.usage
        known = usage is None  # what the tokens are
        first_s = self.first_token_s if self.first_token_s is not None else time.monotonic()
        return JobResult(
            id=self.id,
            status=status,
            finish_reason=finished.reason,
            text=finished.text,
            token_ids=list(finished.token_ids) if request.return_token_ids and known else None,
            prompt_token_ids=self.prompt.token_ids
            if request.return_prompt_token_ids and known
            else None,
            logprobs=_logprobs(finished, tokenizer),
            usage=Usage(
                prompt_tokens=usage.prompt if usage else len(self.prompt.token_ids),
                completion_tokens=finished.completion_tokens,
            ),
            error=error,
            metadata=request.metadata,
            receipt=Receipt(
                attempt=self.claimed.attempt,
                worker=worker,
                model=info.model,
                engine=info.engine,
                dtype=info.dtype,
                device=info.device,
                seed=self.seed,
                claimed_ms=self.claimed.claimed_ms,
                queue_wait_ms=self.claimed.queue_wait_ms,
                window_jobs=self.window_jobs,
                group_rows=finished.stats.group_rows,
                padding_share=round(finished.stats.padding_share, 4),
                batch_rows=round(finished.stats.batch_rows, 2),
                first_token_ms=_ms_since(self.claimed_s, first_s),
                run_ms=_ms_since(self.claimed_s, time.monotonic()),
                prompt_truncated=self.prompt.truncated,
                adapter=request.adapter,
            ),
        )

    def _outcome(self, finished: Finished) -> tuple[JobStatus, JobError | None]:
        if finished.reason is FinishReason.ERROR:
            message = finished.error or "the row failed"
            return JobStatus.FAILED, JobError(code="generation_failed", message=message)
        if finished.reason is FinishReason.CANCELLED:
            status = self.end_as or JobStatus.CANCELLED
            code, message = _MESSAGES[status]
            return status, JobError(code=code, message=message)
        return JobStatus.SUCCEEDED, None


def failure(claimed: ClaimedJob, code: str, message: str, request: JobRequest | None) -> JobResult:
    """The stored result of a job that never became a row."""
    return JobResult(
        id=claimed.id,
        status=JobStatus.FAILED,
        finish_reason=FinishReason.ERROR,
        error=JobError(code=code, message=message),
        metadata={} if request is None else request.metadata,
    )


def never_run(job: HeldJob) -> Finished:
    """The end of a job that was cancelled, or taken away, before it became a row."""
    nothing = RowStats(group_rows=0, padding_share=0.0, batch_rows=0.0)
    return Finished(job.row, FinishReason.CANCELLED, "", (), nothing)


def _logprobs(finished: Finished, tokenizer: Tokenizer) -> list[GeneratedToken] | None:
    if finished.logprobs is None:
        return None

    def fields(token_id: int, logprob: float) -> dict[str, Any]:
        return {
            "token_id": token_id,
            "token": tokenizer.token_text(token_id),
            "logprob": round(max(logprob, LEAST_LOGPROB), 6),
        }

    return [
        GeneratedToken(
            **fields(token_id, of_token.logprob),
            top=[TokenLogprob(**fields(*pair)) for pair in of_token.top],
        )
        for token_id, of_token in zip(finished.token_ids, finished.logprobs, strict=True)
    ]


def _ms_since(start_s: float, end_s: float) -> float:
    return round(max(0.0, end_s - start_s) * 1000, 1)
