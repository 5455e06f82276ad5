"""Writes what rows produce back to Redis while the next steps run: streamed text, then results.

One task does all writing, so a job's deltas come before its result. While Redis is away it keeps
everything and tries again; the fence makes a late write harmless. A result never waits for streamed
text: where the server refuses that, as a full one does, the text of an ended job is left to its result.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from millpond.errors import QueueUnavailableError
from millpond.messages import EventType, JobEvent, JobResult
from millpond.queue.claims import ClaimedJob, Commit
from millpond.queue.job_queue import JobQueue
from worker.jobs.in_flight import StreamedPart

log = structlog.get_logger("millpond.committer")

RETRY_DELAY_S = 0.25
# Bounds one pipeline, so that one write holds neither the server nor this loop for long.
RESULTS_A_WRITE = 64


@dataclass(frozen=True, slots=True)
class Ending:
    """The final outcome of a claim. ``retry``: the result is stored only if this was the last attempt."""

    claimed: ClaimedJob
    result: JobResult
    retry: bool = False


class Committer:
    """``on_committed`` is called for each claim that has been settled, with the server's answer."""

    def __init__(
        self,
        queue: JobQueue,
        on_committed: Callable[[Ending, Commit], None],
        delta_interval_s: float,
    ) -> None:
        self._queue = queue
        self._on_committed = on_committed
        self._interval_s = delta_interval_s
        self._texts: dict[tuple[str, EventType], StreamedPart] = {}
        self._endings: list[Ending] = []
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    def add_text(self, part: StreamedPart, text: str) -> None:
        """Buffer streamed text; it is written soon, together with what follows until then."""
        if not text or not part.row.job.request.stream:
            return
        part.unwritten += text
        self._texts[part.row.row, part.type] = part
        self._changed.set()

    def add_ending(self, ending: Ending) -> None:
        self._endings.append(ending)
        self._settled.clear()
        self._changed.set()

    async def settled(self) -> None:
        """Wait until every result added so far is stored."""
        await self._settled.wait()

    async def run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._write()
            except QueueUnavailableError as error:
                log.warning("write_failed", error=str(error), endings=len(self._endings))
                await asyncio.sleep(RETRY_DELAY_S)
                self._changed.set()
            if not self._endings:
                self._settled.set()

    async def _write(self) -> None:
        endings = self._endings[:RESULTS_A_WRITE]
        rows = {e.claimed.row for e in endings}
        refusal: QueueUnavailableError | None = None
        try:
            await self._write_texts(rows)
        except QueueUnavailableError as error:
            refusal = error
        if endings:
            await self._write_endings(endings)
            self._texts = {k: p for k, p in self._texts.items() if p.row.job.row not in rows}
        if self._endings:
            self._changed.set()
        if refusal is not None:
            raise refusal

    async def _write_endings(self, endings: Sequence[Ending]) -> None:
        final = [ending for ending in endings if not ending.retry]
        if final:
            commits = await self._queue.complete([(e.claimed.fence, e.result) for e in final])
            for ending, commit in zip(final, commits, strict=True):
                self._done(ending, commit)
        for ending in [ending for ending in endings if ending.retry]:
            claimed = ending.claimed
            commit = await self._queue.fail(claimed.fence, claimed.attempt, ending.result)
            log.warning("attempt_failed", job=claimed.id, attempt=claimed.attempt, then=commit)
            self._done(ending, commit)

    async def _write_texts(self, ending_rows: set[str]) -> None:
        """Write the text that is due: by its interval, or because its job ends with this write."""
        now = asyncio.get_running_loop().time()
        due = [
            part
            for part in self._texts.values()
            if part.row.job.row in ending_rows or now - part.row.written_s >= self._interval_s
        ]
        if due:
            await self._send(due)
            # What came since a delta that had to be sent again.
            if rest := [p for p in due if p.unwritten and p.row.job.row in ending_rows]:
                await self._send(rest)
        if self._texts:
            soonest = min(part.row.written_s for part in self._texts.values()) + self._interval_s
            asyncio.get_running_loop().call_at(max(soonest, now), self._changed.set)

    async def _send(self, parts: list[StreamedPart]) -> None:
        for part in parts:
            # What was not answered is sent again as it was: the server knows it by its offset.
            if not part.sending:
                part.sending, part.unwritten = part.unwritten, ""
        await self._queue.emit([(p.row.job.claimed.fence, _delta(p)) for p in parts])
        now = asyncio.get_running_loop().time()
        for part in parts:
            part.written_chars += len(part.sending)
            part.sending = ""
            part.row.written_s = now
            if not part.unwritten:
                del self._texts[part.row.row, part.type]

    def _done(self, ending: Ending, commit: Commit) -> None:
        self._endings.remove(ending)
        if commit is Commit.LOST:
            log.warning("late_write_refused", job=ending.claimed.id, fence=ending.claimed.fence)
        self._on_committed(ending, commit)


def _delta(part: StreamedPart) -> JobEvent:
    job = part.row.job
    return JobEvent(
        type=part.type,
        id=job.id,
        attempt=job.claimed.attempt,
        text=part.sending,
        offset=part.written_chars,
        index=part.row.index if len(job.rows) > 1 else None,
        tokens=part.row.num_tokens or None,
    )
