"""Tests of several pytest processes (`-n 2`) run side by side, but one marked ``alone`` with no other.

Two files of this folder are locked, not changed. A test holds the floor while it runs: exclusively if it is
to be alone, together with its like otherwise. They come onto it through the door, so that nobody passes by
one that waits to be alone.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import knobs

# `millpond up` takes the usual ports if they are free, so two of it must not start at once.
COMMANDS = Path(__file__).with_name("acceptance")
DOOR, FLOOR = Path(__file__), Path(__file__).with_name("__init__.py")


@contextmanager
def on_the_floor(door: Path, floor: Path, *, alone: bool) -> Iterator[None]:
    how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    with door.open() as opened, floor.open() as held:
        fcntl.flock(opened, how)
        fcntl.flock(held, how)
        if not alone:
            fcntl.flock(opened, fcntl.LOCK_UN)
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    os.environ.update(knobs.GIVEN)
    # Threads of several processes that wait for one another, spinning, take many times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of one ``xdist_group`` run in one process, one after the other."""
    for item in items:
        if item.path.is_relative_to(COMMANDS):
            item.add_marker(pytest.mark.xdist_group("commands"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    if not hasattr(item.config, "workerinput"):  # one process
        return (yield)
    with on_the_floor(DOOR, FLOOR, alone=item.get_closest_marker("alone") is not None):
        return (yield)
