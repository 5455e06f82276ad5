"""Tests of several pytest processes (`-n 2`) run side by side, but one marked ``alone`` with no other, and so
does what a test does within `left_alone`.

Two files of this folder are locked, not changed. A test holds the floor while it runs: exclusively if it is
to be alone, together with its like otherwise. They come onto it through the door, so that nobody passes by
one that waits to be alone.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests import knobs

# `millpond up` takes the usual ports if they are free, so two of it must not start at once.
COMMANDS = "tests/acceptance/"
DOOR, FLOOR = Path(__file__), Path(__file__).with_name("__init__.py")


@contextmanager
def on_the_floor(door: Path, floor: Path, *, alone: bool) -> Iterator[IO[str]]:
    """Gives the floor, locked."""
    how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with door.open() as opened, floor.open() as held:
        fcntl.flock(opened, how)
        fcntl.flock(held, how)
        if not alone:
            fcntl.flock(opened, fcntl.LOCK_UN)
        yield held


class _Place:
    """``floor`` is what the running test holds of it, if there are several processes."""

    floor: IO[str] | None = None


@contextmanager
def left_alone() -> Iterator[None]:
    """For the part of a test that measures time: the tests beside it end first, and others wait."""
    if _Place.floor is None:
        yield
        return
    fcntl.flock(_Place.floor, fcntl.LOCK_UN)
    try:
        with on_the_floor(DOOR, FLOOR, alone=True):
            yield
    finally:
        fcntl.flock(_Place.floor, fcntl.LOCK_SH)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    os.environ.update(knobs.GIVEN)
    # Threads of several processes that wait for one another, spinning, take many times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


class ByFile(LoadFileScheduling):
    """The tests of a file run in one process, and those of all commands in the same."""

    def _split_scope(self, nodeid: str) -> str:
        return COMMANDS if nodeid.startswith(COMMANDS) else str(super()._split_scope(nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if not hasattr(item.config, "workerinput"):  # one process
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    with on_the_floor(DOOR, FLOOR, alone=alone) as floor:
        _Place.floor = None if alone else floor
        return (yield)
