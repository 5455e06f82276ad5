"""A slice of a running batch: rows go into their queues, results come out and are written."""

import asyncio
import bisect
import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence

from background.batches.workplace import Workplace, kept
from background.batches.writing import PartWriter
from millpond.batches.flight import Flight
from millpond.batches.records import BatchRecord, BatchStatus, RunningState, Turn, is_done
from millpond.batches.rows import QueuedRow, decode_rows
from millpond.messages import JobResult, JobStatus, job_id_from_key
from millpond.openai.batch_file import expired_line, output_line
from millpond.queue.submission import NewJob

# Rows of one batch in the queues at once: enough to keep every slot busy, few enough for memory.
OUTSTANDING = 2_000
OUTSTANDING_BYTES = 32 * 1024 * 1024
SUBMIT_ROWS = 200
# The length of a slice, if no other batch waits for its own, and if one does.
SLICE_S = 5.0
SHARED_SLICE_S = 0.5
FULL_RETRY_S = 1.0
RENEW_S = 0.5
OBJECTS_KEPT = 8

Placed = tuple[int, QueuedRow]


class RowObjects:
    """The rows of a batch by their places, read an object at a time."""

    def __init__(self, at: Workplace, objects: Sequence[tuple[str, int]]) -> None:
        self._at = at
        self._objects = objects
        self._firsts = [first for _, first in objects]
        self._kept: OrderedDict[int, list[QueuedRow]] = OrderedDict()

    async def row(self, place: int) -> QueuedRow:
        number = bisect.bisect_right(self._firsts, place) - 1
        if number not in self._kept:
            name, _ = self._objects[number]
            data = await asyncio.to_thread(self._at.storage.read, name)
            self._kept[number] = list(decode_rows(data))
            if len(self._kept) > OBJECTS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number][place - self._firsts[number]]


class Advance:
    """One slice. Use `run` once."""

    def __init__(
        self,
        at: Workplace,
        batch: BatchRecord,
        turn: Turn,
        rows: RowObjects,
        done: bytes,
    ) -> None:
        self._at = at
        self._batch = batch
        self._turn = turn
        self._rows = rows
        self._writer = PartWriter(at, turn)
        self._flight: Flight[Placed] = Flight(
            {queue: at.place(queue) for queue in batch.queues}, at.subscriptions
        )
        self._done = done
        self._bytes = 0
        self._cursor = batch.cursor
        self._unsent: deque[Placed] = deque()
        self._state = RunningState(batch.status, 1.0)
        self._renewed_s = 0.0
        self._full_until_s = 0.0
        self._ending: BatchStatus | None = None

    async def run(self, slice_s: float) -> bool:
        """Returns whether all rows before the cursor are in their queues.

        Raises TurnOverError, and QueueUnavailableError and StorageUnavailableError, after which the
        next slice does what is missing."""
        end_s = time.monotonic() + slice_s
        async with self._flight.listening():
            await self._take_up()
            while time.monotonic() < end_s and not self._at.stopping.is_set():
                await self._look_around()
                if self._ending is None:
                    await self._top_up()
                for row, result in await self._flight.ended():
                    self._add(*row, result)
                if self._writer.due:
                    await self._writer.write()
                if not self._flight and not self._unsent and self._all_sent:
                    await self._writer.write()
                    outcome = self._ending or BatchStatus.COMPLETED
                    await self._at.batches.close(self._turn, outcome)
                    break
            await self._writer.write()
        return not self._unsent

    @property
    def _all_sent(self) -> bool:
        return self._cursor >= self._batch.total or self._ending is not None

    async def _take_up(self) -> None:
        """The rows that earlier slices have sent, or may have."""
        for place in range(self._cursor):
            if is_done(self._done, place):
                continue
            row = await self._rows.row(place)
            if self._turn.clean:
                self._expect(place, row)
            else:
                self._unsent.append((place, row))

    async def _look_around(self) -> None:
        """Renew the turn; notice a cancel, and the end of the window."""
        now_s = time.monotonic()
        if now_s - self._renewed_s < RENEW_S:
            return
        self._renewed_s = now_s
        self._state = await self._at.batches.renew(self._turn)
        if self._ending is None:
            if self._state.status is BatchStatus.CANCELLING:
                await self._end_early(BatchStatus.CANCELLED)
            elif self._state.left_s <= 0:
                await self._end_early(BatchStatus.EXPIRED)

    async def _end_early(self, outcome: BatchStatus) -> None:
        """What has ended is kept, what runs is cancelled, what was not run yet never will be."""
        self._ending = outcome
        # Those that a killed process may have sent are in their queues, or unknown there.
        while self._unsent:
            self._expect(*self._unsent.popleft())
        for place, row in await self._flight.cancel():
            self._never_ran(place, row)
        if outcome is BatchStatus.EXPIRED:
            for place in range(self._cursor, self._batch.total):
                if is_done(self._done, place):
                    continue
                self._never_ran(place, await self._rows.row(place))
                if self._writer.due:
                    await self._writer.write()
                    await self._at.batches.renew(self._turn, cursor=place + 1)
            self._cursor = self._batch.total

    def _never_ran(self, place: int, queued: QueuedRow) -> None:
        if self._ending is BatchStatus.EXPIRED:
            self._writer.add_error(place, expired_line(queued.row))
        else:
            self._writer.drop(place)

    async def _top_up(self) -> None:
        while (
            len(self._flight) < OUTSTANDING
            and self._bytes < OUTSTANDING_BYTES
            and time.monotonic() >= self._full_until_s
        ):
            rows = await self._next_rows()
            if not rows:
                return
            for queue, group in _by_queue(rows):
                jobs = [(self._job(row), (place, row)) for place, row in group]
                full = await self._flight.submit(queue, jobs)
                self._unsent.extend(placed for _, placed in full)
                self._bytes += sum(row.num_bytes for _, row in group)
                self._bytes -= sum(row.num_bytes for _, (_, row) in full)
                if full:
                    self._full_until_s = time.monotonic() + FULL_RETRY_S

    async def _next_rows(self) -> list[Placed]:
        """The next ones to send; the cursor passes them before they are."""
        rows = [self._unsent.popleft() for _ in range(min(SUBMIT_ROWS, len(self._unsent)))]
        if rows:
            return rows
        first, self._cursor = self._cursor, min(self._cursor + SUBMIT_ROWS, self._batch.total)
        if first == self._cursor:
            return []
        rows = [(place, await self._rows.row(place)) for place in range(first, self._cursor)]
        await self._at.batches.renew(self._turn, cursor=self._cursor)
        return rows

    def _expect(self, place: int, row: QueuedRow) -> None:
        self._flight.expect(row.queue, self._job_id(row), (place, row))
        self._bytes += row.num_bytes

    def _add(self, place: int, queued: QueuedRow, result: JobResult) -> None:
        self._bytes -= queued.num_bytes
        if result.status is JobStatus.SUCCEEDED:
            self._writer.add_output(place, output_line(queued.row, result), result.usage)
        elif self._ending is not None and result.status is JobStatus.CANCELLED:
            self._never_ran(place, queued)
        else:
            self._writer.add_error(place, output_line(queued.row, result))

    def _job(self, queued: QueuedRow) -> NewJob:
        return NewJob(
            queued.row.request,
            self._job_id(queued),
            self._batch.tenant,
            tenant_limit=self._batch.tenant_limit,
            tenant_bytes=self._batch.tenant_bytes,
        )

    def _job_id(self, queued: QueuedRow) -> str:
        """The same whenever the row is sent, so it runs once."""
        return job_id_from_key(self._batch.tenant, f"{self._batch.id}/{queued.row.line_number}")


async def advance(at: Workplace, batch: BatchRecord, turn: Turn) -> bool:
    """Raises TurnOverError, QueueUnavailableError, StorageUnavailableError."""
    objects = await at.batches.rows(batch.id)
    done = await at.batches.done(batch.id)
    alone = len(await at.batches.unfinished()) == 1
    async with kept(at.batches, turn):
        one = Advance(at, batch, turn, RowObjects(at, objects), done)
        return await one.run(SLICE_S if alone else SHARED_SLICE_S)


def _by_queue(rows: Sequence[Placed]) -> Iterator[tuple[str, list[Placed]]]:
    for queue, group in itertools.groupby(rows, key=lambda placed: placed[1].queue):
        yield queue, list(group)
