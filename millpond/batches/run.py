"""Runs the rows of a batch file through the queue and yields each result as its row ends."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

from millpond.batches.flight import Flight, Place
from millpond.messages import JobResult, JobStatus, job_id_from_key
from millpond.openai.batch_file import Row
from millpond.queue.submission import DEFAULT_TENANT, NewJob
from millpond.queue.subscriptions import Subscriptions

# Rows in the queue at once: enough to group by length and keep every slot busy, few enough for memory.
OUTSTANDING = 2_000
SUBMIT_CHUNK = 200
FULL_RETRY_S = 1.0
_ONLY = "queue"


@dataclass(slots=True)
class BatchTotals:
    """Times are the server's clock in ms: the first claim and the last stored result."""

    rows: int = 0
    failed: int = 0
    output_tokens: int = 0
    first_claim_ms: float | None = None
    last_result_ms: float = 0.0

    def add(self, result: JobResult) -> None:
        self.rows += 1
        self.failed += result.status is not JobStatus.SUCCEEDED
        self.output_tokens += result.usage.completion_tokens if result.usage else 0
        if result.finished_ms is not None:
            self.last_result_ms = max(self.last_result_ms, result.finished_ms)
        if result.receipt is not None:
            claimed_ms = result.receipt.claimed_ms
            self.first_claim_ms = min(self.first_claim_ms or claimed_ms, claimed_ms)

    @property
    def seconds(self) -> float:
        if self.first_claim_ms is None:
            return 0.0
        return max(0.0, self.last_result_ms - self.first_claim_ms) / 1000

    @property
    def tokens_per_s(self) -> float:
        return self.output_tokens / self.seconds if self.seconds else 0.0


class BatchRun:
    """``run_id`` names the run: the same id and row give the same job, so a rerun finds it again."""

    def __init__(self, place: Place, subscriptions: Subscriptions, run_id: str) -> None:
        self._flight: Flight[Row] = Flight({_ONLY: place}, subscriptions)
        self._run_id = run_id

    def job_id(self, row: Row) -> str:
        return job_id_from_key(DEFAULT_TENANT, f"{self._run_id}/{row.custom_id}")

    async def results(self, rows: Iterable[Row]) -> AsyncIterator[tuple[Row, JobResult]]:
        """Each row with its result, in order of completion. Raises QueueUnavailableError."""
        source = iter(rows)
        async with self._flight.listening():
            more = await self._top_up(source)
            while len(self._flight):
                for row, result in await self._flight.ended():
                    yield row, result
                if more and len(self._flight) <= OUTSTANDING - SUBMIT_CHUNK:
                    more = await self._top_up(source)

    async def _top_up(self, source: Iterator[Row]) -> bool:
        """Submit until enough rows are outstanding. False: there are no more."""
        while len(self._flight) < OUTSTANDING:
            chunk = list(itertools.islice(source, SUBMIT_CHUNK))
            if not chunk:
                return False
            jobs = [(NewJob(row.request, self.job_id(row)), row) for row in chunk]
            while jobs := await self._flight.submit(_ONLY, jobs):
                await asyncio.sleep(FULL_RETRY_S)
        return True
