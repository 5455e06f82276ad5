"""The jobs in flight in this worker, from their claim to their stored result."""

import time
from collections.abc import Callable, Iterable, Sequence

import structlog

from millpond.messages import JobRequest, JobResult
from millpond.models.grammars import Grammar
from millpond.models.presets import Preset
from millpond.models.prompts import PreparedPrompt
from millpond.models.tokenization import Tokenizer
from millpond.queue.claims import ClaimedJob, Commit
from millpond.queue.job_queue import JobQueue
from worker.engine_thread import Turn
from worker.engines.base import Capacity, EngineInfo, Finished, GenerationRequest, RejectionCode
from worker.grouping import cut_groups
from worker.jobs.admission import Admission, less
from worker.jobs.committer import Committer, Ending
from worker.jobs.in_flight import InFlightJob, JobRow, never_run
from worker.jobs.job_state import JobState, RowState
from worker.jobs.observer import JobObserver
from worker.jobs.outcome import failure, result_of
from worker.rates import Rates

log = structlog.get_logger("millpond.jobs")


class JobTable:
    """Owns every claimed job, and changes its state, until its outcome is stored.

    Run its ``committer`` as a task. ``engine_info`` is asked when a job ends; ``observers`` are told.
    """

    def __init__(
        self,
        queue: JobQueue,
        tokenizer: Tokenizer,
        preset: Preset,
        *,
        worker_id: str,
        group_padded_tokens: int,
        delta_interval_s: float,
        checkpoint_tokens: int,
        engine_info: Callable[[], EngineInfo],
        rates: Rates,
        observers: Sequence[JobObserver] = (),
    ) -> None:
        self._queue = queue
        self._tokenizer = tokenizer
        self._preset = preset
        self._worker_id = worker_id
        self._group_padded_tokens = group_padded_tokens
        self._engine_info = engine_info
        self._rates = rates
        self._observers = observers
        self._in_flight: dict[str, InFlightJob] = {}
        self._admission = Admission()
        self._to_cancel: list[str] = []  # rows that the engine is told to end at the next turn
        self._num_rows = 0
        self.committer = Committer(queue, self._on_committed, delta_interval_s, checkpoint_tokens)

    @property
    def busy(self) -> bool:
        """Whether anything runs or is ready to."""
        return self._num_rows > 0 or self.num_waiting > 0

    @property
    def num_rows(self) -> int:
        """Rows of the engine after its last turn."""
        return self._num_rows

    @property
    def num_waiting(self) -> int:
        """Prepared jobs that have not fitted into the engine yet."""
        return len(self._admission.jobs)

    @property
    def in_flight(self) -> list[InFlightJob]:
        """Every job whose lease is to be kept, in the order of the claims."""
        return list(self._in_flight.values())

    # -- from the claim to the engine

    def claim(self, claimed: Sequence[ClaimedJob]) -> list[InFlightJob]:
        """Take over the jobs of a claim, before anything else happens to them."""
        jobs = [InFlightJob(job, window_jobs=len(claimed)) for job in claimed]
        self._in_flight.update((job.row, job) for job in jobs)
        for observer in self._observers:
            observer.claimed(jobs)
        return jobs

    def prepare(
        self,
        job: InFlightJob,
        request: JobRequest,
        prompt: PreparedPrompt,
        grammar: Grammar | None = None,
    ) -> None:
        """A claimed job's request has been read: it may go to the engine, if it is still to run."""
        job.prepared(request, prompt, grammar)
        for observer in self._observers:
            observer.prepared(job)
        if job.stopped:
            self._end_waiting(job)
        else:
            job.state = JobState.WAITING
            self._admission.add([job])

    def refuse(self, job: InFlightJob, result: JobResult) -> None:
        """Store the result of a claimed job that cannot become rows."""
        if job.state is JobState.LOST:
            self._forget(job)
        else:
            self._end(job, result)

    def room(self, capacity: Capacity) -> Capacity:
        """What the engine will have left once it has the jobs that wait for it here."""
        return less(capacity, self._admission.jobs)

    def next_turn(self, capacity: Capacity) -> tuple[list[list[GenerationRequest]], list[str]]:
        """The groups to admit, each of like length and to be prefilled together; rows to cancel."""
        jobs = self._admission.take(capacity, idle=self._num_rows == 0)
        lengths = [job.read_tokens for job in jobs]
        groups = cut_groups(lengths, self._group_padded_tokens, max(1, len(jobs)))
        if groups:
            log.debug("admitted", groups=[len(group) for group in groups])
        requests = [
            [r for i in group for r in jobs[i].generation_requests(self._preset)]
            for group in groups
        ]
        now_s = time.monotonic()
        for job in jobs:
            job.state = JobState.RUNNING
            if job.admitted_s is None:
                job.admitted_s = now_s
            for row in job.waiting:
                row.state = RowState.RUNNING
        cancels, self._to_cancel = self._to_cancel, []
        return requests, cancels

    # -- from the engine to the result

    @property
    def prompt_tokens(self) -> int:
        """The most that the turn under way may have to read: one group, or one row that was preempted."""
        running = [job for job in self.in_flight if job.started]
        unread = sum(job.read_tokens for job in running if job.first_token_s is None)
        longest = max(
            (len(job.prompt.token_ids) + row.num_tokens for job in running for row in job.rows),
            default=0,
        )
        return max(longest, min(unread, self._group_padded_tokens))

    def take_in(self, turn: Turn) -> int:
        """Process the outcome of a turn. Returns the number of prompt tokens that it read."""
        self._num_rows = turn.num_rows
        read_tokens = 0
        no_room: dict[str, InFlightJob] = {}
        for rejection in turn.rejections:
            row = self._row(rejection.id)
            if rejection.code is RejectionCode.NO_CAPACITY:
                row.state = RowState.WAITING  # there will be room when rows have ended
                no_room[row.job.row] = row.job
                continue
            row.job.rejection = rejection
            self._finish(row, never_run(row))
        for job in no_room.values():
            self._put_back(job)
        now_s = time.monotonic()
        for event in turn.events:
            row = self._row(event.id)
            job = row.job
            if job.first_token_s is None and (event.token_ids or event.text or event.reasoning):
                job.first_token_s = now_s
                read_tokens += job.read_tokens
            if isinstance(event, Finished):
                self._finish(row, event)
                if job.done:
                    self._rates.job_ended(
                        now_s,
                        sum(end.completion_tokens for end in job.ends) - job.resumed_tokens,
                        wait_s=job.claimed.queue_wait_ms / 1000,
                        latency_s=now_s - job.accepted_s,
                    )
                continue
            row.delivered_tokens += len(event.token_ids)
            if job.state is not JobState.LOST:
                self.committer.add(row, event)
        return read_tokens

    def stop(self, job: InFlightJob, state: JobState) -> bool:
        """End the job early, as CANCELLING, EXPIRING or LOST. False: it has ended, or is ending already.

        Rows that the engine has end with one of the next turns, the others now.
        """
        if job.stopped or job.state is JobState.ENDED:
            return False
        job.state = state
        self._to_cancel += [row.row for row in job.rows if row.state is RowState.RUNNING]
        self._end_waiting(job)
        return True

    # -- out of the worker's hands

    async def give_up_rows(self, message: str) -> None:
        """The engine and all its rows are gone: return their jobs as suspects.

        Those that were to be cancelled, are late, or have decided their vote, end. Raises
        QueueUnavailableError; then the end of the leases does the same.
        """
        self._num_rows = 0
        over = [job for job in self.in_flight if job.stopped or any(r.spared for r in job.rows)]
        for row in [row for job in over for row in job.rows]:
            if row.state is not RowState.ENDED:
                self._finish(row, never_run(row))
        await self.committer.settled()
        jobs = [job for job in self.in_flight if job.started]
        await self.committer.flush(row for job in jobs for row in job.rows)
        running = [
            (job.claimed.fence, failure(job.claimed, "engine_failed", message, job.request))
            for job in jobs
            if job.state is not JobState.LOST
        ]
        for job in jobs:
            self._forget(job)
        await self._queue.suspect(running)

    async def release_waiting(self) -> int:
        """Release the jobs that the engine has not seen. Raises QueueUnavailableError."""
        return await self._release([job for job in self.in_flight if not job.started])

    async def release_all(self) -> int:
        """Release all jobs; returns how many were still ours. Raises QueueUnavailableError."""
        return await self._release(self.in_flight)

    async def _release(self, jobs: Iterable[InFlightJob]) -> int:
        jobs = [job for job in jobs if job.state is not JobState.ENDED]
        await self.committer.flush(row for job in jobs if job.started for row in job.rows)
        ours = [(job.id, job.claimed.fence) for job in jobs if job.state is not JobState.LOST]
        released = await self._queue.release(ours)
        for job in jobs:
            self._forget(job)
        return released

    def _row(self, row: str) -> JobRow:
        """That of an engine's row, see `JobRow.row`."""
        job_row, _, index = row.rpartition("/")
        return self._in_flight[job_row].rows[int(index)]

    def _put_back(self, job: InFlightJob) -> None:
        """Some of its rows did not fit after all: they wait again."""
        if job.stopped:
            self._end_waiting(job)
        elif job.state is JobState.RUNNING:
            job.state = JobState.WAITING
            self._admission.add([job])

    def _end_waiting(self, job: InFlightJob) -> None:
        """End those rows of a job that the engine has not received and is not to have."""
        for row in job.waiting:
            self._finish(row, never_run(row))

    def _finish(self, row: JobRow, finished: Finished) -> None:
        row.end(finished)
        job = row.job
        if not job.done:
            self._spare_rest(job)
            return
        if job.state is JobState.LOST:
            self._forget(job)
        else:
            result = result_of(job, self._worker_id, self._engine_info(), self._tokenizer)
            self._end(job, result, retry=job.retryable)

    def _spare_rest(self, job: InFlightJob) -> None:
        """End the texts that can no longer change their job's vote."""
        if job.stopped or job.undecided:
            return
        job.state = JobState.RUNNING
        rest = [row for row in job.rows if row.finished is None and not row.spared]
        for row in rest:
            row.spared = True
        self._to_cancel += [row.row for row in rest if row.state is RowState.RUNNING]
        self._end_waiting(job)

    def _end(self, job: InFlightJob, result: JobResult, *, retry: bool = False) -> None:
        job.state = JobState.ENDED
        job.ended_s = time.monotonic()
        self.committer.add_ending(Ending(job.claimed, result, retry))

    def _forget(self, job: InFlightJob) -> None:
        job.state = JobState.LOST  # so that nothing that still knows it writes for it
        if self._in_flight.pop(job.row, None) is not None:
            for observer in self._observers:
                observer.given_back(job)

    def _on_committed(self, ending: Ending, commit: Commit) -> None:
        job = self._in_flight.pop(ending.claimed.row, None)
        if job is not None:
            for observer in self._observers:
                observer.settled(job, ending.result, commit)
