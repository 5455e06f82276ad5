"""Who may run beside whom, when several processes share the tests. Each thread here stands for one."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import side_by_side
from tests.side_by_side import left_alone, on_the_floor


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    files = tmp_path / "door", tmp_path / "floor"
    for file in files:
        file.touch()
    return files


def test_most_run_together(files: tuple[Path, Path]) -> None:
    together = threading.Barrier(2, timeout=10)

    def run() -> None:
        with on_the_floor(*files, alone=False):
            together.wait()

    with ThreadPoolExecutor() as threads:
        for running in [threads.submit(run) for _ in range(2)]:
            running.result()


def test_one_that_is_to_be_alone_is(files: tuple[Path, Path]) -> None:
    running: list[int] = []

    def run(number: int) -> None:
        alone = number % 3 == 0
        with on_the_floor(*files, alone=alone):
            running.append(number)
            others = [n for n in running if n != number]
            assert not others if alone else all(n % 3 for n in others)
            running.remove(number)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(run, range(300)))


def test_a_part_of_a_test_is_left_alone(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "DOOR", files[0])
    monkeypatch.setattr(side_by_side, "FLOOR", files[1])
    came, asked = threading.Event(), threading.Event()
    order: list[str] = []

    def beside() -> None:
        with on_the_floor(*files, alone=False):
            came.set()
            assert asked.wait(10)
            order.append("beside")

    def after() -> None:
        with on_the_floor(*files, alone=False):
            order.append("after")

    with ThreadPoolExecutor() as threads, on_the_floor(*files, alone=False) as floor:
        monkeypatch.setattr(side_by_side._Place, "floor", floor)
        running = [threads.submit(beside)]
        assert came.wait(10)
        asked.set()
        with left_alone():
            running.append(threads.submit(after))
            order.append("alone")
        for one in running:
            one.result()
    assert order == ["beside", "alone", "after"]
