"""Worker processes that start at once: forked from one that has imported everything.

A worker takes half a second of a core to import its modules. Tests that kill hundreds would do little
else. What is forked runs the worker's `main` as ``python -m worker`` does.
"""

import asyncio
import os
import signal
import sys
from typing import IO

SOURCE = """
import os, signal, sys
import uvloop
import worker.__main__, worker.engines.simulated

children = set()

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def ended(*_):
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        children.discard(pid)
        say("ended", pid, os.waitstatus_to_exitcode(status))

def work():
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    status = 1
    try:
        status = worker.__main__.main()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)

signal.signal(signal.SIGCHLD, ended)
while os.read(0, 1):
    # Its start is to be told before its end.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    pid = os.fork()
    if pid == 0:
        work()
    children.add(pid)
    say("started", pid)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
for pid in children:
    os.kill(pid, signal.SIGKILL)
"""


class Forked:
    """Such a process, as `asyncio.subprocess.Process` shows one."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._ended = asyncio.Event()

    def end(self, returncode: int) -> None:
        self.returncode = returncode
        self._ended.set()

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Zygote:
    """``async with`` it; `fork` as often as needed. All of them die with it. ``prelude`` is run first."""

    def __init__(self, environment: dict[str, str], log: IO[bytes], prelude: str = "") -> None:
        self._source = prelude + SOURCE
        self._environment = environment
        self._log = log
        self._forked: dict[int, Forked] = {}
        self._started: asyncio.Queue[Forked] = asyncio.Queue()
        self._asking = asyncio.Lock()

    async def __aenter__(self) -> "Zygote":
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", self._source),
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._log,
        )
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()
        await self._listening

    async def fork(self) -> Forked:
        assert self._process.stdin is not None
        async with self._asking:
            self._process.stdin.write(b".")
            return await self._started.get()

    async def _listen(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            what, pid, *status = line.split()
            if what == b"started":
                self._forked[int(pid)] = forked = Forked(int(pid))
                self._started.put_nowait(forked)
            else:
                self._forked.pop(int(pid)).end(int(status[0]))
