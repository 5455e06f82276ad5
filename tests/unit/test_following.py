"""What `millpond submit --wait` and `millpond chat` show of a job as it goes on."""

import sys
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from millpond.cli.following import Follower
from millpond.client import Client
from millpond.messages import EventType, FinishReason, JobEvent, JobResult, JobStatus

RESULT = JobResult(
    id="a",
    status=JobStatus.SUCCEEDED,
    finish_reason=FinishReason.STOP,
    text="Four.",
    reasoning_content="Two and two.",
)


class Told:
    """A client of a job of which these events are told."""

    def __init__(self, *events: tuple[EventType, str]) -> None:
        self._events = [JobEvent(type=kind, id="a", text=text) for kind, text in events]

    async def watch(self, _: str) -> AsyncGenerator[JobEvent, None]:
        for event in self._events:
            yield event
        yield JobEvent(type=EventType.FINISHED, id="a", result=RESULT)


THOUGHT = (EventType.REASONING, "Two and two.")


@pytest.mark.parametrize(
    ("terminal", "events", "out", "notes"),
    [
        (True, [THOUGHT, (EventType.DELTA, "Four.")], "Four.\n", "Two and two.\n\n"),
        (True, [THOUGHT], "Four.\n", "Two and two.\n\n"),
        (False, [THOUGHT, (EventType.DELTA, "Four.")], "Four.\n", ""),
    ],
)
async def test_the_reasoning_is_apart_and_only_where_somebody_looks(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    events: list[Any],
    out: str,
    notes: str,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    await Follower(cast(Client, Told(*events))).follow("a")
    assert capsys.readouterr() == (out, notes)
