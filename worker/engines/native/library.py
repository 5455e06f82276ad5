"""Compile the kernels once for each machine, keep them on disk, load them."""

import ctypes
import hashlib
import importlib.util
import logging
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from millpond.settings.types import CpuIsa
from worker.engines.native.kernel_sets import KernelSet, cpu_features, machine, usable_sets

_SOURCES = Path(__file__).parent / "csrc"
_COMPILERS = ("gcc", "clang", "cc")
_COMPILE_TIMEOUT_S = 120.0
_FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fPIC",
    "-shared",
    "-Werror=implicit-function-declaration",
    "-fvisibility=hidden",
    "-pthread",
    # Each product and sum is rounded as it is written, so that all compilers give the same bits.
    "-ffp-contract=off",
)

_log = logging.getLogger(__name__)


class NoKernelsError(Exception):
    """There are no compiled kernels on this machine, and the message says why."""


@dataclass(frozen=True, slots=True)
class Library:
    """The compiled kernels of one set, for weights in float32 or in bfloat16 and int8.

    ``active_type`` and ``quant_type`` are how activations lie in memory: as they are multiplied with
    floats, and with bytes.
    """

    kernels: KernelSet
    functions: ctypes.CDLL
    float32: bool

    @property
    def active_type(self) -> type:
        return {2: np.uint16, 4: np.float32}[self._size("active")]

    @property
    def quant_type(self) -> type:
        return {1: np.uint8, 2: np.uint16}[self._size("quant")]

    @property
    def activation_bytes(self) -> int:
        return self._size("active")

    @property
    def stored_bytes(self) -> int:
        """Of each key and each value."""
        return 4 if self.float32 else 2

    def _size(self, name: str) -> int:
        return ctypes.c_int64.in_dll(self.functions, f"millpond_{name}_bytes").value


def load_library(cache_dir: Path, isa: CpuIsa = "auto", *, float32: bool = False) -> Library:
    """The most capable kernels up to ``isa`` that this processor runs, compiled first unless
    ``cache_dir`` has them. Raises NoKernelsError."""
    usable = usable_sets(machine(), cpu_features(), most=isa, float32=float32)
    if not usable:
        up_to = "" if isa == "auto" else f" up to {isa}"
        raise NoKernelsError(f"there are no kernels{up_to} for this processor ({machine()})")
    return load_set(usable[-1], cache_dir, float32=float32)


def load_set(kernels: KernelSet, cache_dir: Path, *, float32: bool = False) -> Library:
    """These kernels, which the processor must be able to run. Raises NoKernelsError."""
    flags = (*_FLAGS, *kernels.flags, *(("-DFLOAT32",) if float32 else ()))
    kind = f"{kernels.name}-float32" if float32 else kernels.name
    path = cache_dir.expanduser() / "kernels" / f"millpond-{kind}-{_fingerprint(flags)}.so"
    try:
        if not path.is_file():
            _compile(path, flags)
        return Library(kernels, ctypes.CDLL(str(path)), float32)
    except OSError as error:
        raise NoKernelsError(f"{path}: {error}") from error


def find_compiler() -> list[str] | None:
    """A C compiler of the system's, or the one inside the PyPI package ziglang."""
    for name in _COMPILERS:
        if found := shutil.which(name):
            return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    return None


def _fingerprint(flags: Sequence[str]) -> str:
    digest = hashlib.sha256(repr((flags, platform.libc_ver())).encode())
    for source in sorted(_SOURCES.rglob("*.[ch]")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(path: Path, flags: Sequence[str]) -> None:
    """Compile beside ``path`` and move into place whole; processes may do so at once."""
    compiler = find_compiler()
    if compiler is None:
        raise NoKernelsError(
            "there is no C compiler; install gcc, or the package ziglang (millpond[compiler])"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=path.parent) as folder:
        made = Path(folder) / "forward.so"
        _call([*compiler, *flags, str(_SOURCES / "forward.c"), "-lm", "-o", str(made)])
        made.replace(path)
    _log.info("compiled kernels, once, to %s", path)


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - a compiler from the PATH, on our own files
            command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NoKernelsError(f"the compiler took longer than {_COMPILE_TIMEOUT_S} s") from error
    if done.returncode:
        raise NoKernelsError(f"the compiler fails: {done.stderr[-500:]}")
