"""The jobs in this worker's hands: from their claim, through the engine's rows, to their last word."""

import time
from collections.abc import Callable, Iterable

import structlog

from millpond.claims import ClaimedJob
from millpond.messages import JobResult
from millpond.presets import Preset
from millpond.queue import JobQueue
from millpond.tokenization import Tokenizer
from worker.admission import Admission
from worker.committer import Committer, Ending
from worker.engine_thread import Turn
from worker.engines.base import Capacity, EngineInfo, Finished, GenerationRequest, RejectionCode
from worker.held import HeldChoice, HeldJob, failure, never_run
from worker.intake import Groups, less
from worker.rates import Rates

log = structlog.get_logger("millpond.jobs")


class JobTable:
    """Owns every claimed job until what it ended with is stored. Run its ``committer`` as a task.

    ``engine_info`` is asked when a job ends. What is in ``to_end`` (rows of `HeldJob`) is told to the
    engine at the next turn.
    """

    def __init__(
        self,
        queue: JobQueue,
        tokenizer: Tokenizer,
        preset: Preset,
        *,
        worker_id: str,
        delta_interval_s: float,
        engine_info: Callable[[], EngineInfo],
        rates: Rates,
    ) -> None:
        self._queue = queue
        self._tokenizer = tokenizer
        self._preset = preset
        self._worker_id = worker_id
        self._engine_info = engine_info
        self._rates = rates
        self._admission = Admission()
        self._num_rows = 0
        self.held: dict[str, HeldJob] = {}
        self.to_end: list[str] = []
        self.committer = Committer(queue, self._on_committed, delta_interval_s)

    @property
    def busy(self) -> bool:
        """Whether anything runs or is to run."""
        return self._num_rows > 0 or bool(self._admission)

    @property
    def num_rows(self) -> int:
        """Rows of the engine after its last turn."""
        return self._num_rows

    def hold(self, jobs: Iterable[HeldJob]) -> None:
        self.held.update((job.row, job) for job in jobs)

    def accept(self, groups: Groups) -> None:
        log.debug("window", groups=[len(group) for group in groups])
        self._admission.add(groups)

    def refuse(self, claimed: ClaimedJob, result: JobResult) -> None:
        """Store the result of a job that cannot become a row."""
        self.committer.add_ending(Ending(claimed, result))

    def room(self, capacity: Capacity) -> Capacity:
        """What the engine will have left once it has the jobs that wait for it here."""
        return less(capacity, self._admission.jobs)

    def next_turn(self, capacity: Capacity) -> tuple[list[list[GenerationRequest]], list[str]]:
        """The groups to admit and the rows to cancel. What is to end before it became a row ends."""
        for choice in self._admission.take_over():
            self._finish(choice, never_run(choice))
        requests = []
        for group in self._admission.take(capacity.free_slots, idle=self._num_rows == 0):
            requests.append([r for job in group for r in job.generation_requests(self._preset)])
            for choice in [choice for job in group for choice in job.waiting]:
                choice.admitted = True
        cancels = [c.row for row in self.to_end if (j := self.held.get(row)) for c in j.choices]
        self.to_end.clear()
        return requests, cancels

    def take_in(self, turn: Turn) -> None:
        """Hand on what a turn of the engine brought about."""
        self._num_rows = turn.num_rows
        no_room: dict[str, HeldJob] = {}
        for rejection in turn.rejections:
            choice = self._choice(rejection.id)
            choice.admitted = False
            if rejection.code is RejectionCode.NO_CAPACITY:
                no_room[choice.job.row] = choice.job  # there will be when rows have ended
                continue
            choice.job.rejection = rejection
            self._finish(choice, never_run(choice))
        self._admission.add([job] for job in no_room.values())
        now_s = time.monotonic()
        for event in turn.events:
            choice = self._choice(event.id)
            job = choice.job
            if job.first_token_s is None and (event.token_ids or event.text):
                job.first_token_s = now_s
            if isinstance(event, Finished):
                self._finish(choice, event)
                if job.done:
                    self._rates.job_ended(
                        now_s,
                        sum(end.completion_tokens for end in job.ends),
                    )
            elif not job.lost:
                self.committer.add_text(choice, event.text)

    async def give_up_rows(self, message: str) -> None:
        """The engine and all its rows are gone: give their jobs back as suspects.

        Raises QueueUnavailableError; then the end of the leases does the same.
        """
        self._num_rows = 0
        await self.committer.settled()
        rows = [job for job in self.held.values() if job.admitted]
        running = [
            (job.claimed.fence, failure(job.claimed, "engine_failed", message, job.request))
            for job in rows
            if not job.lost
        ]
        self._admission.drop(rows)  # those of which only some rows had room
        for job in rows:
            del self.held[job.row]
        await self._queue.suspect(running)

    async def release(self, jobs: Iterable[HeldJob]) -> int:
        """Give jobs back unspent; how many still were ours. Raises QueueUnavailableError."""
        jobs = list(jobs)
        ours = [(job.id, job.claimed.fence) for job in jobs if not job.lost]
        released = await self._queue.release(ours)
        for job in jobs:
            del self.held[job.row]
        return released

    def _choice(self, row: str) -> HeldChoice:
        """That of an engine's row, see `HeldChoice.row`."""
        job_row, _, index = row.rpartition("/")
        return self.held[job_row].choices[int(index)]

    def _finish(self, choice: HeldChoice, finished: Finished) -> None:
        choice.finished = finished
        job = choice.job
        if not job.done:
            return
        if job.lost:
            del self.held[job.row]
        else:
            self._end(job, job.result(self._worker_id, self._engine_info(), self._tokenizer))

    def _end(self, job: HeldJob, result: JobResult) -> None:
        job.ended = True
        self.committer.add_ending(Ending(job.claimed, result))

    def _on_committed(self, ending: Ending) -> None:
        self.held.pop(ending.claimed.row, None)
