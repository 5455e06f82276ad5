"""How much memory the engine may use, and how running out of it is recognized."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from millpond.errors import ModelLoadError
from millpond.models.memory_plan import COUNTED_SHARE, Footprint, Sizing, size_engine

# Of the RAM that is free once the weights are loaded; the rest is for others.
_SHARE_CPU = 0.5
_WORDS_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed")


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The message of a failed allocation."""

    message: str


def attempt(compute: Callable[[], T]) -> T | OutOfMemory:
    """The result of ``compute``, or `OutOfMemory`.

    By the time this returns, everything that ``compute`` held is free. Inside an ``except`` block it
    would not be: the exception's traceback keeps the frames alive, and they the tensors.
    """
    try:
        return compute()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return OutOfMemory(str(error))


def affordable(
    footprint: Footprint,
    device: torch.device,
    *,
    slots: int,
    context_tokens: int,
    memory_share: float = 1.0,
) -> Sizing:
    """Slots and KV cache for the memory that is free now, the weights being loaded.

    ``memory_share`` is the part of it that is this engine's: of a card, weights included; of the RAM,
    beside them.
    At most ``slots``, each of at most ``context_tokens``. Raises ModelLoadError if nothing fits.
    """
    room = _room_bytes(device, memory_share)
    sizing = size_engine(footprint, room, slots=slots, context_tokens=context_tokens)
    if sizing is None:
        workspace = footprint.workspace_bytes(1, context_tokens)
        raise ModelLoadError(
            f"{room / 1024**2:,.0f} MiB are free for this model beside its weights; one row alone "
            f"needs {workspace / 1024**2:,.0f} MiB to work in, and its KV cache: see `millpond plan`"
        )
    return sizing


def _room_bytes(device: torch.device, share: float) -> int:
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        own = int(share * COUNTED_SHARE * total) - torch.cuda.memory_reserved(device)
        return max(0, min(own, free - int((1 - COUNTED_SHARE) * total)))
    return int(_free_ram_bytes() * _SHARE_CPU * share)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; libraries below torch report it only in the message."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in _WORDS_OUT_OF_MEMORY)


def _free_ram_bytes() -> int:
    """The memory that is available without swapping, within the container's limit."""
    free = _meminfo_available()
    if free is None:
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    limit, used = (_read_int(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit is not None and used is not None:
        free = min(free, max(0, limit - used))
    return free


def _meminfo_available() -> int | None:
    path = Path("/proc/meminfo")
    if path.is_file():
        for line in path.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _read_int(name: str) -> int | None:
    path = Path(name)
    text = path.read_text(encoding="ascii").strip() if path.is_file() else ""
    return int(text) if text.isdigit() else None
