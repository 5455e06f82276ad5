"""Writes what rows produce back to Redis while the next steps run: tokens and streamed text, then results.

One task does all writing, so a job's deltas come before its result. While Redis is away it keeps
everything and tries again; the fence makes a late write harmless. A result never waits for streamed
text: where the server refuses that, as a full one does, the text of an ended job is left to its result.

The tokens of a row are kept with its job, so that another worker can go on with it: with each piece of its
text, and else every so many tokens.
"""

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import structlog

from millpond.errors import QueueUnavailableError
from millpond.messages import JobEvent, JobResult
from millpond.queue.claims import ClaimedJob, Commit, KeptTokens
from millpond.queue.job_queue import JobQueue
from worker.engines.base import Delta
from worker.jobs.in_flight import JobRow

log = structlog.get_logger("millpond.committer")

RETRY_DELAY_S = 0.25
# So long rows that are given back wait for a server that may refuse their tokens.
FLUSH_S = 0.5
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
        checkpoint_tokens: int,
    ) -> None:
        self._queue = queue
        self._on_committed = on_committed
        self._interval_s = delta_interval_s
        self._checkpoint_tokens = checkpoint_tokens
        self._rows: dict[str, JobRow] = {}  # with something to write
        self._endings: list[Ending] = []
        self._changed = asyncio.Event()
        self._written = asyncio.Event()  # set for a moment after each write of rows
        self._settled = asyncio.Event()
        self._settled.set()

    def add(self, row: JobRow, delta: Delta) -> None:
        """Buffer what it brings; that is written soon, together with what follows until then."""
        unwritten, least, streams = row.unwritten, self._checkpoint_tokens, row.job.request.stream
        # One that goes on is kept in any case: what is kept covers what has been streamed.
        unwritten.add(delta, streams=streams, keeps=least > 0 or bool(row.kept.token_ids))
        enough = 0 < least <= len(unwritten.tokens.waiting_ids)
        if enough or (streams and unwritten.has_text):
            self._rows[row.row] = row
            self._changed.set()

    async def flush(self, rows: Iterable[JobRow]) -> None:
        """Write all that these rows have, before they go to another worker; gives up after a moment."""
        left = [row for row in rows if not row.unwritten.empty]
        for row in left:
            row.unwritten.written_s = -math.inf
            self._rows[row.row] = row
        if left:
            self._changed.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_S):
                    while any(row.row in self._rows for row in left):
                        await self._written.wait()

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
        ending = {e.claimed.row for e in endings}
        refusal: QueueUnavailableError | None = None
        try:
            await self._write_rows(ending)
        except QueueUnavailableError as error:
            refusal = error
        if endings:
            await self._write_endings(endings)
            self._rows = {k: r for k, r in self._rows.items() if r.job.row not in ending}
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

    async def _write_rows(self, ending: set[str]) -> None:
        """Write the rows that are due: by their interval, or because their jobs end with this write, which
        does without the tokens of those that do not stream."""
        now = asyncio.get_running_loop().time()
        for row in [r for r in self._rows.values() if r.job.row in ending]:
            if not row.unwritten.has_text:
                del self._rows[row.row]
        due = [
            row
            for row in self._rows.values()
            if row.job.row in ending or now - row.unwritten.written_s >= self._interval_s
        ]
        if due:
            await self._send(due)
            # What came since a delta that had to be sent again.
            if rest := [r for r in due if not r.unwritten.empty and r.job.row in ending]:
                await self._send(rest)
        if self._rows:
            soonest = min(row.unwritten.written_s for row in self._rows.values())
            asyncio.get_running_loop().call_at(
                max(soonest + self._interval_s, now), self._changed.set
            )

    async def _send(self, rows: list[JobRow]) -> None:
        for row in rows:
            row.unwritten.send()
        await self._queue.emit(
            [(row.job.claimed.fence, delta) for row in rows for delta in _deltas(row)],
            [(row.job.claimed.fence, kept) for row in rows for kept in _kept(row)],
        )
        now = asyncio.get_running_loop().time()
        for row in rows:
            row.unwritten.sent()
            row.unwritten.written_s = now
            if row.unwritten.empty:
                del self._rows[row.row]
        self._written.set()
        self._written.clear()

    def _done(self, ending: Ending, commit: Commit) -> None:
        self._endings.remove(ending)
        if commit is Commit.LOST:
            log.warning("late_write_refused", job=ending.claimed.id, fence=ending.claimed.fence)
        self._on_committed(ending, commit)


def _deltas(row: JobRow) -> Iterator[JobEvent]:
    for part in row.unwritten.texts:
        if part.sending:
            yield JobEvent(
                type=part.type,
                id=row.job.id,
                attempt=row.job.claimed.attempt,
                text=part.sending,
                offset=part.written_chars,
                index=row.index if len(row.job.rows) > 1 else None,
                tokens=row.num_tokens or None,
            )


def _kept(row: JobRow) -> Iterator[KeptTokens]:
    tokens = row.unwritten.tokens
    if tokens.sending:
        yield KeptTokens(row.job.id, row.index, tokens.written_bytes, tokens.sending)
