"""This machine: open files, room on its disks, and what Linux does to a server that runs on it."""

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from millpond.doctor.findings import Finding, error, ok, warning
from millpond.settings import Settings, is_loopback

# Beside the connections of clients: Redis, the tokenizer, logs.
OTHER_FILES = 256
LITTLE_ROOM_BYTES = 2**30
NO_ROOM_BYTES = 100 * 2**20
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def examine_machine(settings: Settings) -> Iterator[Finding]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield judge_files(None if hard == resource.RLIM_INFINITY else hard, settings.max_connections)
    for name, folder in (("data_dir", settings.data_dir), ("cache_dir", settings.cache_dir)):
        yield judge_room(name, folder)
    if is_loopback(urlsplit(settings.redis_url).hostname or "localhost"):
        yield from judge_kernel(_read(OVERCOMMIT), _read(HUGE_PAGES))


def judge_files(allowed: int | None, connections: int) -> Finding:
    """``allowed``: the hard limit; None: there is none."""
    wanted = connections + OTHER_FILES
    if allowed is None or allowed >= wanted:
        return ok("open files", f"{'any number' if allowed is None else allowed} allowed")
    return warning(
        "open files",
        f"{allowed} allowed, and max_connections is {connections}: the API would run out of them first",
        f"LimitNOFILE={wanted} in the systemd unit, ulimit -Hn {wanted} in the shell, or a lower "
        "max_connections",
    )


def judge_room(name: str, folder: Path) -> Finding:
    there = folder.expanduser().resolve()
    while not there.exists():
        there = there.parent
    free_bytes = shutil.disk_usage(there).free
    found = f"{name} {folder}: {free_bytes / 2**30:.1f} GiB free"
    if free_bytes < NO_ROOM_BYTES:
        return error("disk", found, "make room: a server whose disk is full refuses every write")
    if free_bytes < LITTLE_ROOM_BYTES:
        return warning("disk", found, f"make room, or choose another {name}")
    return ok("disk", found)


def judge_kernel(overcommit: str | None, huge_pages: str | None) -> Iterator[Finding]:
    """Of the machine on which the server runs; None: another system than Linux."""
    if overcommit == "0":
        yield warning(
            "vm.overcommit_memory",
            "0: when memory is low the server cannot fork to rewrite its file",
            "sysctl vm.overcommit_memory=1, and the same in /etc/sysctl.d",
        )
    if huge_pages is not None and "[always]" in huge_pages:
        yield warning(
            "transparent huge pages",
            "always: a rewrite of the file copies more memory and takes longer",
            f"echo madvise > {HUGE_PAGES}",
        )


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None
