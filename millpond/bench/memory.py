"""The memory that a worker takes: on its card if it has one, else of its process."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from millpond.tasks import end_tasks

LOOK_S = 0.3
_QUERY = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")


@dataclass(slots=True)
class Seen:
    """``most_bytes`` is None where it cannot be seen."""

    most_bytes: int | None = None


@contextlib.asynccontextmanager
async def watching_memory(pid: int | None, device: str | None) -> AsyncIterator[Seen]:
    """What is seen until the block ends. On a card everything there counts, so nobody else should use it."""
    seen = Seen()
    if device is not None and device.startswith("cuda"):
        watch = asyncio.create_task(_watch_card(seen))
        try:
            yield seen
        finally:
            await end_tasks(watch)
        return
    if pid is not None:
        forget_peak(pid)
    try:
        yield seen
    finally:
        seen.most_bytes = None if pid is None else peak_bytes(pid)


async def _watch_card(seen: Seen) -> None:
    while True:
        used = await asyncio.to_thread(_card_bytes)
        if used is not None:
            seen.most_bytes = max(used, seen.most_bytes or 0)
        await asyncio.sleep(LOOK_S)


def _card_bytes() -> int | None:
    """Of the first card."""
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        said = subprocess.run(  # noqa: S603 - a constant
            _QUERY, capture_output=True, text=True, timeout=10, check=True
        )
        return int(said.stdout.splitlines()[0]) * 1024**2
    return None


def forget_peak(pid: int) -> None:
    """Of a process of the same user: while it loads a model it holds the weights more than once."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def peak_bytes(pid: int) -> int | None:
    """The most that was resident since `forget_peak`, or since the process began; Linux alone tells."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
