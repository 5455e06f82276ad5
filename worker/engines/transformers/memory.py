"""How much memory there is for keys and values, and what running out of it looks like."""

import os
from pathlib import Path

import torch

from worker.engines.transformers.kv_cache import SHELF_OVERHEAD, KVLayout

# Of what is free once the weights are loaded; the rest is for activations and for others.
_KV_SHARE_CPU = 0.5
_KV_SHARE_CUDA = 0.8
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "alloc_failed")


def affordable_kv_tokens(layout: KVLayout, wanted: int) -> int:
    """As many tokens of KV cache as are wanted, or as the free memory holds; at least 1."""
    if layout.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(layout.device)
        share = _KV_SHARE_CUDA
    else:
        free, share = _free_ram_bytes(), _KV_SHARE_CPU
    affordable = int(free * share / (layout.bytes_per_token * SHELF_OVERHEAD))
    return max(1, min(wanted, affordable))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed; libraries below torch say it in words only."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in _OUT_OF_MEMORY)


def _free_ram_bytes() -> int:
    """What the system can give without swapping, and the container's limit leaves."""
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
