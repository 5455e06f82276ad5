"""A few forked processes: started again when they die, stopped together.

They are forked from one that has imported everything and opened nothing, so each costs little memory
and almost no time.
"""

import os
import signal
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

import structlog

from millpond.local.child import end_with_parent, restart_delay_s
from millpond.logs import outline

# A process that has run for this long has started well.
STARTED_AFTER_S = 3.0
STOPPING = (signal.SIGTERM, signal.SIGINT)

log = structlog.get_logger("millpond.background")


class Processes:
    """``works`` by name: what each process does until SIGTERM."""

    def __init__(self, works: Mapping[str, Callable[[], None]]) -> None:
        self._works = works
        self._running: dict[int, tuple[str, float]] = {}
        self._fruitless = dict.fromkeys(works, 0)
        self._stopping = False

    def run(self) -> None:
        """Returns when all have stopped, after SIGTERM or SIGINT."""
        for number in STOPPING:
            signal.signal(number, lambda *_: self._stop())
        for name in self._works:
            self._fork(name)
        while self._running:
            pid, status = os.wait()
            name, started_s = self._running.pop(pid)
            if self._stopping:
                continue
            well = time.monotonic() - started_s > STARTED_AFTER_S
            self._fruitless[name] = 0 if well else self._fruitless[name] + 1
            delay_s = restart_delay_s(self._fruitless[name])
            code = os.waitstatus_to_exitcode(status)
            log.error("process_ended", name=name, code=code, again_s=delay_s)
            time.sleep(delay_s)
            if not self._stopping:
                self._fork(name)

    def _stop(self) -> None:
        self._stopping = True
        for pid in self._running:
            os.kill(pid, signal.SIGTERM)

    def _fork(self, name: str) -> None:
        # A signal between the fork and the entry in `_running` would miss the new process.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        pid = os.fork()
        if pid == 0:
            self._become(name)
        self._running[pid] = name, time.monotonic()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def _become(self, name: str) -> NoReturn:
        code = 1
        try:
            for number in STOPPING:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            end_with_parent()
            self._works[name]()
            code = 0
        except Exception as error:
            log.error("process_failed", name=name, cause=str(error), **outline(error))
        finally:
            os._exit(code)


def run_processes(works: Mapping[str, Callable[[], None]]) -> None:
    """Run one process for each of the works until SIGTERM or SIGINT."""
    Processes(works).run()
