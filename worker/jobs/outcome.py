"""The result of a job in flight: what its rows' ends make of it."""

import time
from collections.abc import Sequence
from typing import Any

from millpond.messages import (
    Choice,
    CompletionTokensDetails,
    FinishReason,
    GeneratedToken,
    JobError,
    JobRequest,
    JobResult,
    JobStatus,
    Receipt,
    TokenLogprob,
    Usage,
    VotedAnswer,
    VoteResult,
)
from millpond.models.tokenization import Tokenizer
from millpond.queue.claims import ClaimedJob
from worker.engines.base import EngineInfo, Finished
from worker.jobs.in_flight import InFlightJob, JobRow
from worker.jobs.job_state import JobState

# JSON has no minus infinity; OpenAI writes this for a token that cannot be.
LEAST_LOGPROB = -9999.0

_NOT_SUCCEEDED = (FinishReason.ERROR, FinishReason.CANCELLED)
_MESSAGES = {
    JobStatus.CANCELLED: ("cancelled", "cancelled by the client"),
    JobStatus.EXPIRED: ("deadline_exceeded", "the deadline passed before the job was finished"),
}


def result_of(job: InFlightJob, worker: str, info: EngineInfo, tokenizer: Tokenizer) -> JobResult:
    """The stored result, once it is `done`."""
    assert job.done
    if job.rejection is not None:
        code, message = job.rejection.code, job.rejection.message
        return failure(job.claimed, code, message, job.request)
    request, ends = job.request, job.ends
    choices = [_choice(job, i, end, tokenizer) for i, end in enumerate(ends)]
    vote = _vote_of(job)
    shown = 0 if vote is None or vote.winner is None else vote.winner
    first, stats, usage = choices[shown], ends[shown].stats, ends[shown].usage
    speaker = _speaker(job, vote) or ends[shown]
    status, error = _outcome(job, speaker)
    if not any(end.stats.group_rows or end.token_ids for end in ends):
        return JobResult(
            id=job.id,
            status=status,
            finish_reason=speaker.reason,
            error=error,
            metadata=request.metadata,
        )
    first_s = job.first_token_s if job.first_token_s is not None else time.monotonic()
    return JobResult(
        id=job.id,
        status=status,
        finish_reason=speaker.reason,
        text=first.text,
        reasoning_content=first.reasoning_content,
        token_ids=first.token_ids,
        prompt_token_ids=job.prompt.token_ids
        if request.return_prompt_token_ids and usage is None
        else None,
        logprobs=first.logprobs,
        choices=choices if len(choices) > 1 else None,
        vote=vote,
        usage=Usage(
            prompt_tokens=usage.prompt if usage else len(job.prompt.token_ids),
            completion_tokens=sum(end.completion_tokens for end in ends),
            completion_tokens_details=_details(ends),
        ),
        error=error,
        metadata=request.metadata,
        receipt=Receipt(
            attempt=job.claimed.attempt,
            worker=worker,
            model=info.model,
            engine=info.engine,
            backend=info.backend,
            dtype=info.dtype,
            device=info.device,
            seed=job.seed,
            claimed_ms=job.claimed.claimed_ms,
            queue_wait_ms=job.claimed.queue_wait_ms,
            window_jobs=job.window_jobs,
            group_rows=stats.group_rows,
            batch_rows=round(stats.batch_rows, 2),
            first_token_ms=_ms_since(job.claimed_s, first_s),
            run_ms=_ms_since(job.claimed_s, time.monotonic()),
            prompt_truncated=job.prompt.truncated,
            resumed_tokens=job.resumed_tokens,
            adapter=request.adapter,
            saved_tokens=_saved_tokens(job),
            # The first text that was read; the others find what it read.
            cached_tokens=min(
                (end.stats.cached_tokens for end in ends if end.stats.group_rows), default=0
            ),
        ),
    )


def _speaker(job: InFlightJob, vote: VoteResult | None) -> Finished | None:
    """The row that went wrong and whose end is that of the whole job, if there is one.

    A vote that has a winner can do without the texts that failed, and those that it made superfluous were
    not cancelled by the client.
    """
    wrong = [
        row.finished
        for row in job.rows
        if row.finished is not None and row.finished.reason in _NOT_SUCCEEDED and not row.spared
    ]
    if vote is not None and vote.winner is not None:
        wrong = [end for end in wrong if end.reason is FinishReason.CANCELLED]
    return next(iter(wrong), None)


def _vote_of(job: InFlightJob) -> VoteResult | None:
    if job.vote is None:
        return None
    winner = job.vote.winner
    return VoteResult(
        answer=None if winner is None else winner.answer,
        winner=None if winner is None else winner.texts[0],
        answers=[
            VotedAnswer(answer=one.answer, count=len(one.texts), texts=one.texts)
            for one in job.vote.standings
        ],
        cancelled=[row.index for row in _superfluous(job)],
    )


def _saved_tokens(job: InFlightJob) -> int | None:
    """A guess at what the texts that the vote made superfluous would have written.

    As if each text went on until the shortest has ended, and from there ended at a rate that is the same for
    all: what all wrote after that, by the number that ended after it, is then what one still has before it.
    """
    cancelled = {row.index for row in _superfluous(job)}
    if not cancelled:
        return None
    lengths = [end.completion_tokens for end in job.ends]
    cut = [tokens for index, tokens in enumerate(lengths) if index in cancelled]
    ended = [tokens for index, tokens in enumerate(lengths) if index not in cancelled]
    shortest = min(ended)
    later = sum(max(0, tokens - shortest) for tokens in lengths)
    left = later / max(1, len(ended) - 1)
    whole = [min(job.prompt.max_tokens, max(shortest, tokens) + left) for tokens in cut]
    return round(sum(whole) - sum(cut))


def _superfluous(job: InFlightJob) -> list[JobRow]:
    """Those that ended by themselves in the step in which they were to be cancelled are none."""
    return [
        row
        for row in job.rows
        if row.spared and row.finished and row.finished.reason is FinishReason.CANCELLED
    ]


def _choice(job: InFlightJob, index: int, finished: Finished, tokenizer: Tokenizer) -> Choice:
    asked = job.request.return_token_ids
    return Choice(
        index=index,
        finish_reason=finished.reason,
        text=finished.text,
        reasoning_content=finished.reasoning,
        token_ids=list(finished.token_ids) if asked and finished.usage is None else None,
        logprobs=_logprobs(finished, tokenizer),
    )


def _outcome(job: InFlightJob, finished: Finished) -> tuple[JobStatus, JobError | None]:
    if finished.reason is FinishReason.ERROR:
        message = finished.error or "the row failed"
        return JobStatus.FAILED, JobError(code="generation_failed", message=message)
    if finished.reason is FinishReason.CANCELLED:
        expired = job.state is JobState.EXPIRING
        status = JobStatus.EXPIRED if expired else JobStatus.CANCELLED
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


def _details(ends: Sequence[Finished]) -> CompletionTokensDetails | None:
    tokens = sum(end.reasoning_tokens for end in ends)
    return CompletionTokensDetails(reasoning_tokens=tokens) if tokens else None


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
