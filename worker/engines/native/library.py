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
from pathlib import Path

_SOURCES = Path(__file__).parent / "csrc"
_COMPILERS = ("gcc", "clang", "cc")
_COMPILE_TIMEOUT_S = 120.0
_FLAGS = (
    "-std=gnu11",
    "-O3",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-pthread",
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mavx512bf16",
    "-mavx512vnni",
    "-mfma",
    "-mprefer-vector-width=512",
    # Each product and sum is rounded as it is written, so that all compilers give the same bits.
    "-ffp-contract=off",
)
# What the flags let the compiler use; the processor must have it all.
CPU_FLAGS = frozenset(
    {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_vnni", "fma"}
)

_log = logging.getLogger(__name__)


class NoKernelsError(Exception):
    """There are no compiled kernels on this machine, and the message says why."""


def load_library(cache_dir: Path) -> ctypes.CDLL:
    """The kernels, compiled first unless ``cache_dir`` has them. Raises NoKernelsError."""
    missing = CPU_FLAGS - cpu_flags()
    if missing:
        raise NoKernelsError(f"the processor lacks {', '.join(sorted(missing))}")
    path = cache_dir.expanduser() / "kernels" / f"millpond-{_fingerprint()}.so"
    try:
        if not path.is_file():
            _compile(path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoKernelsError(f"{path}: {error}") from error


def cpu_flags() -> set[str]:
    """The processor's feature flags; empty if the system does not list them."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return set()
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("flags"):
            return set(line.split())
    return set()


def find_compiler() -> list[str] | None:
    """A C compiler of the system's, or the one inside the PyPI package ziglang."""
    for name in _COMPILERS:
        if found := shutil.which(name):
            return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    return None


def _fingerprint() -> str:
    digest = hashlib.sha256(repr((_FLAGS, platform.libc_ver())).encode())
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(path: Path) -> None:
    """Compile beside ``path`` and move into place whole; processes may do so at once."""
    compiler = find_compiler()
    if compiler is None:
        raise NoKernelsError(
            "there is no C compiler; install gcc, or the package ziglang (millpond[compiler])"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=path.parent) as folder:
        made = Path(folder) / "forward.so"
        _call([*compiler, *_FLAGS, str(_SOURCES / "forward.c"), "-lm", "-o", str(made)])
        made.replace(path)
    _log.info("compiled the kernels, once, to %s", path)


def _call(command: list[str]) -> None:
    try:
        done = subprocess.run(  # noqa: S603 - a compiler from the PATH, on our own files
            command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NoKernelsError(f"the compiler took longer than {_COMPILE_TIMEOUT_S} s") from error
    if done.returncode:
        raise NoKernelsError(f"the compiler fails: {done.stderr[-500:]}")
