"""A server on a machine that can lose its power: what was written and not synced is then gone.

The kernel keeps what a killed process wrote, so a kill alone loses nothing. A shim between the server
and libc writes down how long each file was when a sync of it began that succeeded; after a SIGKILL the
append-only file is cut to that. The worst case: the kernel may have written more by itself.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from millpond.local.server import RedisServer

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int noted(const char *name, int fd) {
    int (*sync)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    struct stat before;
    int known = fstat(fd, &before) == 0 && S_ISREG(before.st_mode);
    int status = sync(fd);
    if (known && status == 0) {
        char line[64];
        int out = open(getenv("SYNCED_SIZES"), O_WRONLY | O_APPEND | O_CREAT, 0600);
        int length = snprintf(line, sizeof line, "%lu %lld\n", (unsigned long)before.st_ino,
                              (long long)before.st_size);
        if (write(out, line, length) != length) abort();
        close(out);
    }
    return status;
}

int fsync(int fd) { return noted("fsync", fd); }
int fdatasync(int fd) { return noted("fdatasync", fd); }
"""


class Power:
    """``binary`` is the server to start; ``cut`` takes the power from it."""

    def __init__(self, binary: Path, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None or sys.platform != "linux":
            pytest.skip("needs Linux and a C compiler")
        source, shim = folder / "shim.c", folder / "shim.so"
        source.write_text(SHIM)
        subprocess.run([compiler, "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
        self._sizes = folder / "synced"
        self.binary = folder / "server"
        self.binary.write_text(
            f'#!/bin/sh\nexport LD_PRELOAD={shim} SYNCED_SIZES={self._sizes}\nexec {binary} "$@"\n'
        )
        self.binary.chmod(0o700)

    async def cut(self, server: RedisServer) -> int:
        """Kill the server and forget what was not synced: so many bytes."""
        await server.kill()
        synced = dict(line.split() for line in self._sizes.read_text().splitlines())
        forgotten = 0
        for file in server.options.data_dir.glob("appendonlydir/*.incr.aof"):
            size, kept = file.stat().st_size, int(synced.get(str(file.stat().st_ino), 0))
            if kept < size:
                with file.open("rb+") as opened:
                    opened.truncate(kept)
                forgotten += size - kept
        return forgotten
