"""A stack of a command's own, in a temporary folder that goes with it."""

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from millpond.local.stack import LOCK_FILE, Stack, running_stack
from millpond.local.stack_events import Say, StackEvent
from millpond.settings import Settings

READY_TIMEOUT_S = 1800.0


@contextlib.asynccontextmanager
async def temporary_stack(
    settings: Settings, *, prefix: str, api: bool, say: Say
) -> AsyncIterator[Stack]:
    """Hands it over once it is ready. ``prefix`` begins the folder's name, here and in killed runs.

    ``say`` is told of warnings and errors. Raises StackError.
    """

    def say_if_wrong(event: StackEvent) -> None:
        if event.level in ("warning", "error"):
            say(event)

    sweep_folders(Path(tempfile.gettempdir()), prefix)
    with tempfile.TemporaryDirectory(prefix=prefix) as folder:
        own = settings.model_copy(update={"data_dir": Path(folder), "grace_s": 1.0})
        async with running_stack(own, embedded_server=True, api=api, say=say_if_wrong) as stack:
            await stack.wait_ready(READY_TIMEOUT_S)
            yield stack


def sweep_folders(parent: Path, prefix: str) -> None:
    """Remove what killed runs left behind: the folders whose lock nobody holds.

    One without a lock file is just being made.
    """
    for lock_file in parent.glob(f"{prefix}*/{LOCK_FILE}"):
        with contextlib.suppress(OSError), lock_file.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_file.parent)
