"""One process of a stack: started, restarted when it dies, stopped."""

import asyncio
import contextlib
import ctypes
import os
import sys
import time
from pathlib import Path
from signal import SIGCONT, SIGINT, SIGKILL, SIGTERM, Signals
from typing import Any

from millpond.local.last_words import last_words
from millpond.local.stack_events import Level, Say, StackEvent
from millpond.tasks import end_tasks

RESTART_DELAY_S = 0.2
RESTART_DELAY_MAX_S = 10.0
# One that dies this often without becoming ready will not recover by itself.
GIVE_UP_AFTER_DEATHS = 3
# Time left to a process that was told twice to stop.
HURRY_S = 3.0
PR_SET_PDEATHSIG = 1


def restart_delay_s(fruitless_deaths: int) -> float:
    """The delay before a restart, after so many deaths in a row without becoming ready."""
    return float(min(RESTART_DELAY_MAX_S, RESTART_DELAY_S * 2 ** min(fruitless_deaths, 16)))


class Child:
    """A process that should stay up. ``say`` is told of each death and each return.

    Its watcher calls `mark_ready` once it is ready: after a death from then on it restarts almost at once,
    while deaths without it are followed by ever longer delays.
    """

    def __init__(
        self,
        name: str,
        argv: list[str],
        environment: dict[str, str],
        *,
        stop_s: float,
        say: Say,
        log: Path | None = None,
        umask: int | None = None,
    ) -> None:
        self.name = name
        self._umask = umask
        self._argv = argv
        self._environment = environment
        self._stop_s = stop_s
        self._tell = say
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._log_start = 0
        self._started_s = 0.0
        self._deadline: asyncio.Timeout | None = None
        self._hurried = False
        self.ready = False
        self.fruitless_deaths = 0
        self.last_death: str | None = None

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    @property
    def age_s(self) -> float:
        """How long it has been running since it was last started; 0 while it does not run."""
        return 0.0 if self.pid is None else time.monotonic() - self._started_s

    @property
    def hopeless(self) -> str | None:
        """Why there is no point in starting it again; None while there is."""
        if self.fruitless_deaths < GIVE_UP_AFTER_DEATHS:
            return None
        return f"{self.name} does not stay up: it {self.last_death}"

    async def start(self) -> None:
        """Raises OSError when it cannot be started at all."""
        await self._spawn()
        self._watcher = asyncio.create_task(self._watch(), name=f"watch-{self.name}")

    async def _spawn(self) -> None:
        self._started_s = time.monotonic()
        # Only where it is wanted: uvloop does not know the argument.
        umask: dict[str, Any] = {} if self._umask is None else {"umask": self._umask}
        with contextlib.ExitStack() as files:
            sink = None
            if self._log is not None:
                sink = files.enter_context(self._log.open("ab"))
                self._log_start = self._log.stat().st_size
            self._process = await asyncio.create_subprocess_exec(
                *self._argv,
                env={**os.environ, **self._environment},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                # Its own session: a Ctrl-C in the terminal reaches the stack alone, which stops in order.
                start_new_session=True,
                preexec_fn=end_with_parent,
                **umask,
            )

    async def _watch(self) -> None:
        while True:
            assert self._process is not None
            status = await self._process.wait()
            self._end_session()
            self._on_death(status)
            while True:
                await asyncio.sleep(restart_delay_s(self.fruitless_deaths))
                try:
                    await self._spawn()
                    break
                except OSError as error:
                    self._count_death(f"cannot be started: {error}")

    def _end_session(self) -> None:
        """End what the dead process has started and left behind: it would hold memory and ports."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, SIGKILL)

    def _on_death(self, status: int) -> None:
        if status < 0:
            self._count_death(f"was ended by {Signals(-status).name}")
            return
        why = None if self._log is None else last_words(self._log, self._log_start)
        self._count_death(f"ended with status {status}" + (f": {why}" if why else ""))

    def _count_death(self, what: str) -> None:
        self.last_death = what
        self.fruitless_deaths = 0 if self.ready else self.fruitless_deaths + 1
        self.ready = False
        delay_s = restart_delay_s(self.fruitless_deaths)
        self._say(f"{what}; starting it again in {delay_s:.1f} s", "error")

    def mark_ready(self, detail: str = "") -> None:
        """It does its work. Says so when that is news."""
        if self.ready:
            return
        self.ready = True
        took_s = time.monotonic() - self._started_s
        if self.last_death is None:
            self._say(f"ready after {took_s:.1f} s{detail}", "good")
        else:
            self._say(f"back after {took_s:.1f} s", "good")

    def signal(self, number: Signals) -> None:
        """Raises ProcessLookupError when it is not running at this moment."""
        if self._process is None or self._process.returncode is not None:
            raise ProcessLookupError(self.name)
        self._process.send_signal(number)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after its time; returns when it is gone."""
        await end_tasks(self._watcher)
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._signal_if_running(SIGTERM)
        self._signal_if_running(SIGCONT)  # a stopped one hears nothing else
        try:
            async with asyncio.timeout(self._stop_s) as self._deadline:
                if self._hurried:
                    self.hurry()
                await process.wait()
        except TimeoutError:
            self._say("did not stop in its time; killing it", "warning")
            self._signal_if_running(SIGKILL)
            await process.wait()
        self._end_session()

    def hurry(self) -> None:
        """Tell it once more to stop, now or when its turn to stop comes: it drops what it still does."""
        self._hurried = True
        if self._deadline is not None and not self._deadline.expired():
            self._signal_if_running(SIGINT)
            with contextlib.suppress(RuntimeError):  # it has just ended
                self._deadline.reschedule(asyncio.get_running_loop().time() + HURRY_S)

    def _signal_if_running(self, number: Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.signal(number)

    def _say(self, message: str, level: Level) -> None:
        self._tell(StackEvent(self.name, message, level))


def end_with_parent() -> None:
    """Called in a new process: ask Linux to end it should its parent be killed."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGTERM)
