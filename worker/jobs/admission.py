"""Which jobs go to the engine at the next turn. Pure."""

from collections.abc import Iterable, Sequence

from worker.engines.base import Capacity
from worker.jobs.in_flight import InFlightJob
from worker.jobs.job_state import JobState


class Admission:
    """The prepared jobs that wait for the engine, in the order in which they came.

    A job goes in with all its rows at once, which then share its prefill. One whose rows do not fit
    waits, and so do those behind it, so that it is not overtaken for ever. A job
    whose state is another than WAITING has left.
    """

    def __init__(self) -> None:
        self._jobs: list[InFlightJob] = []

    @property
    def jobs(self) -> list[InFlightJob]:
        self._jobs = [job for job in self._jobs if job.state is JobState.WAITING]
        return self._jobs

    def add(self, jobs: Iterable[InFlightJob]) -> None:
        self._jobs += jobs

    def take(self, capacity: Capacity, *, idle: bool) -> list[InFlightJob]:
        """Take out what there is room for.

        An ``idle`` engine gets the first job in any case: nothing will come free by waiting.
        """
        waiting = self.jobs
        taken: list[InFlightJob] = []
        for job in waiting:
            left = less(capacity, [job])
            if min(left.free_slots, left.free_tokens) < 0 and not (idle and not taken):
                break
            capacity = left
            taken.append(job)
        self._jobs = waiting[len(taken) :]
        return taken


def less(capacity: Capacity, jobs: Sequence[InFlightJob]) -> Capacity:
    """What is left of it beside these jobs' waiting rows; negative where they need more."""
    return Capacity(
        capacity.free_slots - sum(len(job.waiting) for job in jobs),
        capacity.free_tokens - sum(job.expected_tokens for job in jobs),
    )
