"""Who is told of a job's way through the worker: its metrics, its traces. They change nothing."""

from collections.abc import Sequence
from typing import Protocol

from millpond.messages import JobResult
from millpond.queue.claims import Commit
from worker.jobs.in_flight import InFlightJob


class JobObserver(Protocol):
    def claimed(self, jobs: Sequence[InFlightJob]) -> None:
        """One claim's jobs are in flight. A claim may be empty."""

    def prepared(self, job: InFlightJob) -> None:
        """Its request is read, and its prompt is tokenized."""

    def settled(self, job: InFlightJob, result: JobResult, commit: Commit) -> None:
        """The server has answered the write of its outcome."""

    def given_back(self, job: InFlightJob) -> None:
        """It left without an outcome: released, a suspect, or its lease was lost."""
