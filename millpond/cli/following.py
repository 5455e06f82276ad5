"""Following one job: its text on standard output as it comes, on standard error why none comes."""

import asyncio
import contextlib
import sys
import textwrap

from rich.console import Console
from rich.text import Text

from millpond.client import Client
from millpond.errors import MillpondError
from millpond.messages import EventType, JobEvent, JobResult, JobStatus, VoteResult
from millpond.queue.waiting import why_silent
from millpond.tasks import end_tasks

EXPLAIN_AFTER_S = 2.0
# Of an answer in the count of a vote.
SHOWN_CHARS = 40


class Follower:
    """Prints a job's first text. On a terminal piece by piece, its reasoning dimmed on standard error; else
    whole, when it is certain.

    A text that is begun anew, since its worker died, can only be marked on a terminal; a pipe gets the
    final text alone.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._live = sys.stdout.isatty()
        self._notes = Console(stderr=True, highlight=False)
        self._heard_s = 0.0
        self._printed = False
        self._thinking = False

    async def follow(self, id: str) -> JobResult:
        """Until the job has ended; its result."""
        self._heard_s = asyncio.get_running_loop().time()
        explaining = asyncio.create_task(self._explain(id), name="explain")
        reading = asyncio.create_task(self._read(id), name="read")
        try:
            # Not awaited itself: an interrupt could get lost in there, see `end_tasks`.
            await asyncio.wait([reading])
            return reading.result()
        finally:
            await end_tasks(reading, explaining)

    async def _read(self, id: str) -> JobResult:
        async with contextlib.aclosing(self._client.watch(id)) as events:
            async for event in events:
                self._heard_s = asyncio.get_running_loop().time()
                if event.type is EventType.FINISHED and event.result is not None:
                    self._finish(event.result)
                    return event.result
                self._show(event)
        raise AssertionError("the last event is the finished one")

    def _show(self, event: JobEvent) -> None:
        if event.type is EventType.REASONING and not event.index and self._live:
            self._thinking = True
            self._notes.print(Text(event.text, style="dim"), end="")
        elif event.type is EventType.DELTA and not event.index and self._live:
            self._end_reasoning()
            self._printed = True
            print(event.text, end="", flush=True)
        elif event.type is EventType.RESET:
            self._end_reasoning()
            if self._printed:
                print(flush=True)
            self._printed = False
            self._note(f"starting over: {event.reason}")

    def _end_reasoning(self) -> None:
        """The answer begins on a line of its own."""
        if self._thinking:
            self._notes.print("\n")
        self._thinking = False

    def _finish(self, result: JobResult) -> None:
        self._end_reasoning()
        if result.status is not JobStatus.SUCCEEDED:
            if self._printed:
                print(flush=True)
            why = f": {result.error.message}" if result.error else ""
            self._note(f"the job is {result.status}{why}")
        elif result.vote is not None:
            self._show_vote(result, result.vote)
            return
        else:
            print("" if self._printed else result.text, flush=True)
        for choice in (result.choices or [])[1:]:
            print(f"\n{choice.text}", flush=True)

    def _show_vote(self, result: JobResult, vote: VoteResult) -> None:
        """The text that won, unless it has been printed as it came; on standard error the count."""
        if self._printed:
            print(flush=True)
        if not self._printed or vote.winner:
            print(result.text, flush=True)
        num_texts = len(result.choices or ())
        counts = ", ".join(
            f"{one.count} for {textwrap.shorten(one.answer, SHOWN_CHARS, placeholder='...')}"
            for one in vote.answers
        )
        cancelled = f"; cancelled: {len(vote.cancelled)}" if vote.cancelled else ""
        self._note(f"of {num_texts} texts {counts or 'none has an answer'}{cancelled}")

    async def _explain(self, id: str) -> None:
        """After a while without news, and whenever the reason becomes another one."""
        said = "it runs"
        while True:
            await asyncio.sleep(EXPLAIN_AFTER_S / 4)
            if asyncio.get_running_loop().time() - self._heard_s < EXPLAIN_AFTER_S:
                continue
            try:
                why = why_silent(await self._client.get(id), await self._client.queue_state())
            except MillpondError as error:
                why = str(error)
            if why != said:
                said = why
                self._note(why)

    def _note(self, text: str) -> None:
        self._notes.print(f"[{text}]", style="dim", markup=False)
