"""The real command in a real process."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from millpond.local.stack_file import StackFile

MILLPOND = Path(sys.executable).parent / "millpond"


async def until(
    condition: Callable[[], Any | Awaitable[Any]], timeout_s: float = 30.0, why: str = ""
) -> Any:
    """Poll a plain or async condition; its value. Fails with ``why`` when the time is over."""
    end = asyncio.get_running_loop().time() + timeout_s
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if asyncio.get_running_loop().time() > end:
            pytest.fail(f"not within {timeout_s:g} s: {why or condition}")
        await asyncio.sleep(0.02)


class Up:
    """A running ``millpond up`` and what it prints."""

    def __init__(self, process: asyncio.subprocess.Process, data: Path, output: Path) -> None:
        self.process = process
        self.data = data
        self._output = output

    @property
    def printed(self) -> str:
        """Without the spaces that fill its columns."""
        return re.sub(" +", " ", self._output.read_text())

    @property
    def about(self) -> StackFile:
        found = StackFile.read(self.data)
        assert found is not None
        return found

    def children(self) -> dict[str, psutil.Process]:
        """The stack's own children by what they are."""
        names = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                line = " ".join(child.cmdline())
            except psutil.NoSuchProcess:  # just killed: gone, or a zombie for a moment
                continue
            services = ("worker", "api", "background")
            name = next((name for name in services if f"-m {name}" in line), "redis")
            names[name] = child
        return names

    def children_called(self, name: str) -> list[psutil.Process]:
        """Those of a name that several have."""
        return [
            child
            for child in psutil.Process(self.process.pid).children()
            if f"-m {name}" in " ".join(child.cmdline())
        ]

    def restarted(self, name: str, old_pid: int) -> bool:
        child = self.children().get(name)
        return child is not None and child.pid != old_pid

    async def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 40.0)


@pytest.fixture
async def up(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Up]]]:
    """Starts ``millpond up`` with these arguments and waits until it is ready."""
    started: list[Up] = []

    async def start(
        *arguments: str,
        data: Path | None = None,
        ready: bool = True,
        within_s: float = 90.0,
        as_json: bool = False,
    ) -> Up:
        data = data or tmp_path / "data"
        output = tmp_path / f"up-{len(started)}.txt"
        with output.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                *(MILLPOND, "up", *(() if as_json else ("--no-json",)), "--data", data, *arguments),
                stdout=sink,
                stderr=sink,
                cwd=tmp_path,
                env={**os.environ, "COLUMNS": "200"},
            )
        running = Up(process, data, output)
        started.append(running)
        if ready:
            await until(
                lambda: "Ctrl-C" in running.printed or process.returncode is not None,
                within_s,
                "millpond up is ready",
            )
            assert process.returncode is None, running.printed
        return running

    yield start
    for running in started:
        await running.stop(signal.SIGTERM)


async def run_command(
    *arguments: str, cwd: Path, timeout_s: float = 60.0, columns: int = 200
) -> tuple[int, str, str]:
    """Run ``millpond ARGUMENTS``; its status, standard output and standard error."""
    process = await asyncio.create_subprocess_exec(
        MILLPOND,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd,
        env={**os.environ, "COLUMNS": str(columns)},
    )
    out, err = await asyncio.wait_for(process.communicate(), timeout_s)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
