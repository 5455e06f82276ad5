"""A stack's process: its pauses between deaths, its way back, what it is said to have died of."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from millpond.local.child import RESTART_DELAY_MAX_S, Child, restart_delay_s
from millpond.local.last_words import last_words
from millpond.local.stack_events import StackEvent
from millpond.local.stack_watch import Silence


def test_only_deaths_without_work_in_between_wait_longer() -> None:
    delays = [restart_delay_s(n) for n in range(40)]
    assert delays[0] < 1.0
    assert delays == sorted(delays)
    assert delays[-1] == RESTART_DELAY_MAX_S


class Running:
    """A child that is a shell script, and what was said of it."""

    def __init__(self, folder: Path) -> None:
        self.script = folder / "script"
        self.said: list[StackEvent] = []
        self.child = Child(
            *("worker", [str(self.script)], {}),
            stop_s=5.0,
            say=self.said.append,
            log=folder / "worker.log",
        )

    def write(self, text: str) -> None:
        self.script.write_text(f"#!/bin/sh\n{text}\n")
        self.script.chmod(0o700)

    def heard(self, words: str) -> bool:
        return any(words in event.message for event in self.said)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    made = Running(tmp_path)
    yield made
    await made.child.stop()


async def test_a_child_that_had_been_ready_is_back_within_a_second_each_time(
    running: Running,
) -> None:
    """A dozen deaths in a row, as one kill after another, must not add up to a long pause."""
    running.write("exec sleep 60")
    await running.child.start()
    loop = asyncio.get_running_loop()
    for _ in range(12):
        running.child.mark_ready()
        killed = running.child.pid
        running.child.signal(signal.SIGKILL)
        at = loop.time()
        await until(lambda killed=killed: running.child.pid not in (None, killed))  # type: ignore[misc]
        assert loop.time() - at < 1.0
    assert running.child.fruitless_deaths == 0
    running.child.mark_ready()
    assert running.heard("was ended by SIGKILL")
    assert running.heard("back after")


async def test_a_respawn_that_fails_is_tried_again(running: Running) -> None:
    """The watcher must outlive it: else nobody would start the process again, ever."""
    running.write("exec sleep 60")
    await running.child.start()
    running.script.unlink()
    running.child.signal(signal.SIGKILL)
    await until(lambda: running.heard("cannot be started"))
    running.write("exec sleep 60")
    await until(lambda: running.child.pid is not None)


async def test_a_death_is_told_with_its_reason(running: Running) -> None:
    running.write("echo starting; echo 'millpond worker: no such model' >&2; exit 3")
    await running.child.start()
    await until(lambda: running.heard("ended with status 3: no such model"))
    await until(lambda: running.child.fruitless_deaths == 2)
    running.write("echo 'the second time' >&2; exit 3")
    await until(lambda: running.heard("ended with status 3: the second time"))


async def test_who_is_told_twice_to_stop_drops_what_it_does(running: Running) -> None:
    running.write("trap '' TERM; trap 'exit 0' INT; echo up; while :; do sleep 0.05; done")
    await running.child.start()
    await until(lambda: "up" in (running.script.parent / "worker.log").read_text())
    stopping = asyncio.create_task(running.child.stop())
    done, _ = await asyncio.wait([stopping], timeout=0.3)
    assert not done
    running.child.hurry()
    async with asyncio.timeout(2.0):
        await stopping
    assert not running.said


async def test_a_stopped_process_still_ends_in_order(running: Running) -> None:
    running.write("exec sleep 60")
    await running.child.start()
    running.child.signal(signal.SIGSTOP)
    async with asyncio.timeout(3.0):
        await running.child.stop()
    with contextlib.suppress(ProcessLookupError):
        running.child.signal(signal.SIGCONT)
        pytest.fail("it still runs")


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("", None),
        ('{"event": "stopped", "level": "info"}', None),
        ("millpond api: the port is taken\n\n", "the port is taken"),
        ("Traceback (most recent call last):\n  File ...\nValueError: bad\n", "ValueError: bad"),
        (
            '{"event": "engine_broke", "level": "error", "kind": "OSError"}\n'
            '{"event": "stopped", "level": "info"}\n',
            "engine_broke: OSError",
        ),
        ("{torn", "{torn"),
    ],
)
def test_last_words(tmp_path: Path, log: str, cause: str | None) -> None:
    path = tmp_path / "log"
    before = "what an earlier process said\n"
    path.write_text(before + log)
    assert last_words(path, len(before)) == cause
    assert last_words(tmp_path / "none", 0) is None


def test_silence_is_told_once_and_ended_at_its_limit() -> None:
    silence = Silence(tell_after_s=5.0, end_after_s=30.0)
    heard = [silence.judge(s) for s in (0.0, 4.0, 5.0, 6.0, 0.1, 0.2, 7.0, 31.0, 0.0)]
    assert heard == [None, None, "tell", None, "heard", None, "tell", "end", None]
