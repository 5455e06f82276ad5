"""From the sources to a shared library, by whatever C compiler there is."""

import hashlib
import importlib.util
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from worker.engines.native.kernel_sets import KernelSet

SOURCES = Path(__file__).parent / "csrc"
_KERNELS = SOURCES / "forward.c"
# In a wheel; in the tree only while one is built.
PREBUILT = Path(__file__).parent / "prebuilt"
_COMPILERS = ("gcc", "clang", "cc")
_COMPILE_TIMEOUT_S = 120.0
_FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fPIC",
    "-Werror=implicit-function-declaration",
    "-fvisibility=hidden",
    "-pthread",
    # Each product and sum is rounded as it is written, so that all compilers give the same bits.
    "-ffp-contract=off",
)


class NoKernelsError(Exception):
    """There are no compiled kernels on this machine, and the message says why."""


def compile_flags(kernels: KernelSet, *, float32: bool) -> list[str]:
    return [*_FLAGS, *kernels.flags, *(("-DFLOAT32",) if float32 else ())]


def prebuilt_name(kernels: KernelSet, *, float32: bool) -> str:
    return f"{kernels.machine}-{kernels.name}{'-float32' if float32 else ''}.so"


def fingerprint(flags: Sequence[str]) -> str:
    """Of the sources, these flags and the C library."""
    digest = hashlib.sha256(repr((flags, platform.libc_ver())).encode())
    for source in sorted(SOURCES.rglob("*.[ch]")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def compile_library(
    compiler: Sequence[str] | None, flags: Sequence[str], path: Path, source: Path = _KERNELS
) -> None:
    """Compile beside ``path`` and move into place whole; processes may do so at once.

    Raises NoKernelsError and OSError.
    """
    if compiler is None:
        raise NoKernelsError(
            "there is no C compiler; install gcc, or the package ziglang (millpond[compiler])"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=path.parent) as folder:
        made = Path(folder) / "forward.so"
        _call([*compiler, *flags, "-shared", str(source), "-lm", "-o", str(made)])
        made.replace(path)


def find_compiler() -> list[str] | None:
    """A C compiler of the system's, or the one inside the PyPI package ziglang."""
    for name in _COMPILERS:
        if found := shutil.which(name):
            return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    return None


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - a compiler from the PATH, on our own files
            command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NoKernelsError(f"the compiler took longer than {_COMPILE_TIMEOUT_S} s") from error
    if done.returncode:
        raise NoKernelsError(f"the compiler fails: {done.stderr[-500:]}")
