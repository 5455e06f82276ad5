"""What `millpond submit --wait` and `millpond chat` show of a job as it goes on."""

import sys
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from millpond.cli.following import Follower
from millpond.client import Client
from millpond.messages import (
    Choice,
    EventType,
    FinishReason,
    JobEvent,
    JobResult,
    JobStatus,
    VotedAnswer,
    VoteResult,
)

RESULT = JobResult(
    id="a",
    status=JobStatus.SUCCEEDED,
    finish_reason=FinishReason.STOP,
    text="Four.",
    reasoning_content="Two and two.",
)


class Told:
    """A client of a job of which these events are told."""

    def __init__(self, *events: tuple[EventType, str], result: JobResult = RESULT) -> None:
        self._events = [JobEvent(type=kind, id="a", text=text) for kind, text in events]
        self._result = result

    async def watch(self, _: str) -> AsyncGenerator[JobEvent, None]:
        for event in self._events:
            yield event
        yield JobEvent(type=EventType.FINISHED, id="a", result=self._result)


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


VOTED = JobResult(
    id="a",
    status=JobStatus.SUCCEEDED,
    finish_reason=FinishReason.STOP,
    text="It is 4.",
    choices=[
        Choice(index=i, finish_reason=FinishReason.STOP, text=text)
        for i, text in enumerate(["It is 5.", "It is 4.", "So 4.", "It"])
    ],
    vote=VoteResult(
        answer="4",
        winner=1,
        answers=[
            VotedAnswer(answer="4", count=2, texts=[1, 2]),
            VotedAnswer(answer="5", count=1, texts=[0]),
        ],
        cancelled=[3],
    ),
)


@pytest.mark.parametrize(
    ("terminal", "out"), [(True, "It is 5.\nIt is 4.\n"), (False, "It is 4.\n")]
)
async def test_of_texts_that_vote_the_winner_is_shown(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
    out: str,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    told = Told((EventType.DELTA, "It is 5."), result=VOTED)
    await Follower(cast(Client, told)).follow("a")
    count = "[of 4 texts 2 for 4, 1 for 5; cancelled: 1]\n"
    assert capsys.readouterr() == (out, count)
