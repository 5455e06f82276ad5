"""Runs the rows of a batch file through the queue and yields each result as its row ends."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass

from millpond.errors import MillpondError, QueueFullError
from millpond.messages import JobEvent, JobResult, JobStatus, job_id_from_key
from millpond.openai.batch_file import Row
from millpond.queue.job_queue import JobQueue
from millpond.queue.results import Results
from millpond.queue.submission import DEFAULT_TENANT, NewJob
from millpond.queue.subscriptions import GAP, Subscriptions

# Rows in the queue at once: enough to group by length and keep every slot busy, few enough for memory.
OUTSTANDING = 2_000
SUBMIT_CHUNK = 200
# Pub/sub is a hint: look at the stored results at least this often.
LOOK_AGAIN_S = 5.0
FULL_RETRY_S = 1.0


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

    def __init__(
        self, queue: JobQueue, results: Results, subscriptions: Subscriptions, run_id: str
    ) -> None:
        self._queue = queue
        self._results = results
        self._subscriptions = subscriptions
        self._run_id = run_id

    def job_id(self, row: Row) -> str:
        return job_id_from_key(DEFAULT_TENANT, f"{self._run_id}/{row.custom_id}")

    async def results(self, rows: Iterable[Row]) -> AsyncIterator[tuple[Row, JobResult]]:
        """Each row with its result, in order of completion. Raises QueueUnavailableError."""
        source = iter(rows)
        waiting: dict[str, Row] = {}
        async with self._subscriptions.listen(self._queue.keys.channel) as inbox:
            more = await self._top_up(source, waiting)
            while waiting:
                for row, result in await self._ended(inbox, waiting):
                    yield row, result
                if more and len(waiting) <= OUTSTANDING - SUBMIT_CHUNK:
                    more = await self._top_up(source, waiting)

    async def _top_up(self, source: Iterator[Row], waiting: dict[str, Row]) -> bool:
        """Submit until enough rows are outstanding. False: there are no more."""
        while len(waiting) < OUTSTANDING:
            chunk = list(itertools.islice(source, SUBMIT_CHUNK))
            if not chunk:
                return False
            await self._submit(chunk, waiting)
        return True

    async def _submit(self, rows: list[Row], waiting: dict[str, Row]) -> None:
        while rows:
            jobs = [NewJob(row.request, self.job_id(row)) for row in rows]
            answers = await self._queue.submit_many(jobs)
            full = []
            for row, job, answer in zip(rows, jobs, answers, strict=True):
                if isinstance(answer, QueueFullError):
                    full.append(row)
                elif isinstance(answer, MillpondError):
                    raise answer
                elif job.id is not None:
                    waiting[job.id] = row
            rows = full
            if rows:
                await asyncio.sleep(FULL_RETRY_S)

    async def _ended(
        self, inbox: "asyncio.Queue[bytes]", waiting: dict[str, Row]
    ) -> list[tuple[Row, JobResult]]:
        """Wait for a message, then read the results of the rows that may have ended."""
        ids = await _ids_with_news(inbox, waiting)
        ended = []
        for id, result in (await self._results.get_results(ids)).items():
            ended.append((waiting.pop(id), result))
        return ended


async def _ids_with_news(inbox: "asyncio.Queue[bytes]", waiting: dict[str, Row]) -> list[str]:
    """Ids named by finished messages; all outstanding ids when messages may have been lost."""
    try:
        messages = [await asyncio.wait_for(inbox.get(), LOOK_AGAIN_S)]
    except TimeoutError:
        return list(waiting)
    while not inbox.empty():
        messages.append(inbox.get_nowait())
    if GAP in messages:
        return list(waiting)
    ids = []
    for message in messages:
        if b'"type":"finished"' in message[:64]:
            id = JobEvent.model_validate_json(message).id
            if id in waiting:
                ids.append(id)
    return ids
