"""Where a batch file runs: on a server that is given, on the stack of ``data/``, or on one of its own."""

import contextlib
import fcntl
import shutil
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from millpond.local.stack import LOCK_FILE, running_stack
from millpond.local.stack_events import StackEvent
from millpond.local.stack_file import StackFile
from millpond.settings import Settings

READY_TIMEOUT_S = 1800.0
FOLDER_PREFIX = "millpond-batch-"


@dataclass(frozen=True, slots=True)
class Place:
    redis_url: str
    queue: str


@contextlib.asynccontextmanager
async def batch_place(settings: Settings, console: Console) -> AsyncIterator[Place]:
    """A running stack is used if its texts would be the same as those of one of our own."""
    if "redis_url" in settings.model_fields_set:
        yield Place(settings.redis_url, settings.queue)
        return
    running = StackFile.read(settings.data_dir)
    if running is not None and _fits(running, settings):
        console.print(f"Using the stack that runs in {settings.data_dir}/.", markup=False)
        yield Place(running.redis_url, running.queue)
        return
    async with _own_stack(settings, console) as place:
        yield place


def _fits(running: StackFile, settings: Settings) -> bool:
    right_queue = "queue" not in settings.model_fields_set or running.queue == settings.queue
    return right_queue and running.serves == settings.serves()


@contextlib.asynccontextmanager
async def _own_stack(settings: Settings, console: Console) -> AsyncIterator[Place]:
    def say(event: StackEvent) -> None:
        if event.level in ("warning", "error"):
            console.print(str(event), markup=False)

    sweep_folders(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX) as folder:
        own = settings.model_copy(update={"data_dir": Path(folder), "grace_s": 1.0})
        async with running_stack(own, embedded_server=True, api=False, say=say) as stack:
            await stack.wait_ready(READY_TIMEOUT_S)
            yield Place(stack.redis_url, settings.queue)


def sweep_folders(parent: Path) -> None:
    """Remove what killed runs left behind: the folders whose lock nobody holds.

    One without a lock file is just being made.
    """
    for lock_file in parent.glob(f"{FOLDER_PREFIX}*/{LOCK_FILE}"):
        with contextlib.suppress(OSError), lock_file.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_file.parent)
