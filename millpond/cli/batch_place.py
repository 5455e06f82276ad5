"""Where a batch file runs: on a server that is given, on the stack of ``data/``, or on one of its own."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from rich.console import Console

from millpond.local.stack_events import StackEvent
from millpond.local.stack_file import StackFile
from millpond.local.temporary_stack import temporary_stack
from millpond.settings import Settings

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

    def say(event: StackEvent) -> None:
        console.print(str(event), markup=False)

    async with temporary_stack(settings, prefix=FOLDER_PREFIX, api=False, say=say) as stack:
        yield Place(stack.redis_url, settings.queue)


def _fits(running: StackFile, settings: Settings) -> bool:
    right_queue = "queue" not in settings.model_fields_set or running.queue == settings.queue
    return right_queue and running.serves == settings.serves()
