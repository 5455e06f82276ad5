"""One job in flight: what was claimed, and how far its rows are."""

import time
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from millpond.messages import (
    FinishReason,
    JobRequest,
    choice_seed,
    seed_from_id,
)
from millpond.models.grammars import Grammar
from millpond.models.limits import thinking_of
from millpond.models.presets import Preset
from millpond.models.prompts import PreparedPrompt
from millpond.queue.claims import ClaimedJob, KeptText
from worker.engines.base import (
    Finished,
    GenerationRequest,
    Rejection,
    RowStats,
    Sampling,
    expected_output,
)
from worker.jobs.job_state import STOPPED_STATES, JobState, RowState
from worker.jobs.kept import KeptRow, unpack
from worker.jobs.unwritten import UnwrittenRow
from worker.voting.answers import answer_finder
from worker.voting.vote import Vote


@dataclass(slots=True)
class JobRow:
    """One of a job's texts: a row of the engine's, from admission to its end."""

    job: "InFlightJob"
    index: int
    state: RowState = RowState.WAITING
    kept: KeptRow = field(default_factory=KeptRow)  # generated under earlier claims
    delivered_tokens: int = 0  # by the engine, which begins with those that were kept
    finished: Finished | None = None  # set once it has ended
    spared: bool = False  # it is cancelled, since it cannot change the vote
    unwritten: UnwrittenRow = field(default_factory=lambda: UnwrittenRow(KeptRow()))

    @classmethod
    def going_on(cls, job: "InFlightJob", index: int, text: KeptText) -> Self:
        """As an earlier claim has left it."""
        kept = unpack(text.tokens, with_logprobs=job.request.logprobs is not None)
        unwritten = UnwrittenRow(kept, said_chars=text.said_chars, thought_chars=text.thought_chars)
        return cls(job, index, kept=kept, unwritten=unwritten)

    @property
    def num_tokens(self) -> int:
        """Generated so far."""
        return max(len(self.kept.token_ids), self.delivered_tokens)

    @property
    def row(self) -> str:
        return f"{self.job.row}/{self.index}"

    def end(self, finished: Finished) -> None:
        self.state, self.finished = RowState.ENDED, finished
        if self.job.vote is not None:
            whole = finished.reason is FinishReason.STOP
            self.job.vote.ended(self.index, finished.text if whole else None)


@dataclass(slots=True)
class InFlightJob:
    """Owned by the JobTable from claim to commit.

    It has no rows until it is `prepared`, and ends when all of them have. ``claimed_s``, ``admitted_s``
    (to the engine), ``first_token_s`` and ``ended_s`` are this process's monotonic clock.
    """

    claimed: ClaimedJob
    window_jobs: int
    state: JobState = JobState.CLAIMED
    rows: list[JobRow] = field(default_factory=list)
    claimed_s: float = field(default_factory=time.monotonic)
    admitted_s: float | None = None
    first_token_s: float | None = None
    ended_s: float | None = None
    # Why the engine does not take it.
    rejection: Rejection | None = None
    # If its texts vote.
    vote: Vote | None = None
    _prepared: tuple[JobRequest, PreparedPrompt, Grammar | None] | None = None

    def prepared(
        self, request: JobRequest, prompt: PreparedPrompt, grammar: Grammar | None = None
    ) -> None:
        """Its request is read, its prompt tokenized, its constraint compiled: it has rows now."""
        self._prepared = request, prompt, grammar
        if self.claimed.kept:
            self.rows = [JobRow.going_on(self, i, text) for i, text in enumerate(self.claimed.kept)]
        else:
            self.rows = [JobRow(self, index) for index in range(request.n)]
        if request.vote is not None:
            self.vote = Vote(answer_finder(request.vote, request.vote_pattern), request.n)

    @property
    def request(self) -> JobRequest:
        assert self._prepared is not None
        return self._prepared[0]

    @property
    def prompt(self) -> PreparedPrompt:
        assert self._prepared is not None
        return self._prepared[1]

    @property
    def operation(self) -> Literal["chat", "text_completion"] | None:
        """What OpenTelemetry's conventions call it; None while its request is not read."""
        if self._prepared is None:
            return None
        return "text_completion" if self.request.raw or self.request.token_ids else "chat"

    @property
    def accepted_s(self) -> float:
        """The time of its acceptance, on the same clock as ``claimed_s``."""
        return self.claimed_s - self.claimed.queue_wait_ms / 1000

    @property
    def grammar(self) -> Grammar | None:
        """What its texts must follow."""
        assert self._prepared is not None
        return self._prepared[2]

    @property
    def seed(self) -> int:
        own = self.request.seed
        return seed_from_id(self.id) if own is None else own

    @property
    def id(self) -> str:
        return self.claimed.id

    @property
    def row(self) -> str:
        return self.claimed.row

    @property
    def stopped(self) -> bool:
        return self.state in STOPPED_STATES

    @property
    def expected_tokens(self) -> int:
        """Tokens of KV cache to reserve at first for its waiting rows: prompts and predicted output."""
        return sum(
            len(self.prompt.token_ids)
            + expected_output(
                self.prompt.max_tokens, self.claimed.predicted_tokens, len(row.kept.token_ids)
            )
            for row in self.waiting
        )

    @property
    def resumed_tokens(self) -> int:
        """Tokens that were generated under earlier claims."""
        return sum(len(row.kept.token_ids) for row in self.rows)

    @property
    def read_tokens(self) -> int:
        """Tokens that the engine reads before it generates the next one, of the longest of its rows."""
        return len(self.prompt.token_ids) + max(len(row.kept.token_ids) for row in self.rows)

    @property
    def started(self) -> bool:
        """Whether any of its rows has been with the engine."""
        return any(row.state is not RowState.WAITING for row in self.rows)

    @property
    def waiting(self) -> list[JobRow]:
        """The rows that the engine has not received yet."""
        return [row for row in self.rows if row.state is RowState.WAITING]

    @property
    def ends(self) -> list[Finished]:
        """The outcomes of the rows that have ended."""
        return [row.finished for row in self.rows if row.finished is not None]

    @property
    def done(self) -> bool:
        """Whether all rows have ended."""
        return len(self.ends) == len(self.rows) > 0

    @property
    def undecided(self) -> bool:
        """Whether the texts that have not ended matter to its result."""
        return self.vote is None or not self.vote.decided

    @property
    def retryable(self) -> bool:
        """Whether it failed, once it is `done`, and another attempt may not."""
        if self.vote is not None and self.vote.winner is not None:
            return False
        errors = [end for end in self.ends if end.reason is FinishReason.ERROR]
        return bool(errors) and all(end.retryable for end in errors)

    def generation_requests(self, preset: Preset) -> list[GenerationRequest]:
        """The engine's request for each waiting row, with all defaults resolved by the preset."""
        sampling = self._sampling(preset)
        return [
            GenerationRequest(
                id=row.row,
                prompt_token_ids=self.prompt.token_ids,
                sampling=replace(sampling, seed=choice_seed(self.seed, row.index)),
                predicted_tokens=self.claimed.predicted_tokens,
                messages=self.prompt.messages,
                adapter=self.request.adapter,
                grammar=self.grammar,
                thinking=thinking_of(self.request, preset),
                cache_salt=self.request.cache_salt or "",
                kept_token_ids=row.kept.token_ids,
                kept_logprobs=row.kept.logprobs,
            )
            for row in self.waiting
        ]

    def _sampling(self, preset: Preset) -> Sampling:
        request = self.request

        def chosen(value: float | None, default: float) -> float:
            return default if value is None else value

        return Sampling(
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
            max_reasoning_tokens=request.max_reasoning_tokens,
            loop_repeats=request.loop_repeats,
            logprobs=request.logprobs,
        )


def never_run(row: JobRow) -> Finished:
    """The end of a row that was cancelled, refused, or taken away, before the engine had it."""
    nothing = RowStats(group_rows=0, batch_rows=0.0)
    return Finished(row.row, FinishReason.CANCELLED, "", (), nothing)
