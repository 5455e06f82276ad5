"""The kernel sets: one source, compiled for what each kind of processor has."""

import platform
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from millpond.settings.types import CpuIsa
from worker.engines.native.tile_permission import may_use_tiles

_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class KernelSet:
    """``needs`` are the processor's feature flags as Linux names them, ``flags`` the compiler's.

    A set with ``multiplies`` differs from the one before only in products of bfloat16 or bytes, so
    float32 does without it.
    """

    name: CpuIsa
    machine: str
    needs: frozenset[str]
    flags: tuple[str, ...]
    multiplies: bool = False


_AVX2 = frozenset({"avx2", "fma"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_AVX2_FLAGS = ("-mavx2", "-mfma")
_AVX512_FLAGS = (
    *_AVX2_FLAGS,
    *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"),
    "-mprefer-vector-width=512",
)
_VNNI, _BF16 = "avx512_vnni", "avx512_bf16"
_AMX = frozenset({"amx_tile", "amx_bf16", "amx_int8"})

# From the least to the most capable of each machine.
KERNEL_SETS = (
    KernelSet("avx2", "x86_64", _AVX2, _AVX2_FLAGS),
    KernelSet(
        "avx2_vnni", "x86_64", _AVX2 | {"avx_vnni"}, (*_AVX2_FLAGS, "-mavxvnni"), multiplies=True
    ),
    KernelSet("avx512", "x86_64", _AVX512, _AVX512_FLAGS),
    KernelSet(
        "avx512_vnni",
        "x86_64",
        _AVX512 | {_VNNI},
        (*_AVX512_FLAGS, "-mavx512vnni"),
        multiplies=True,
    ),
    KernelSet(
        "avx512_bf16",
        "x86_64",
        _AVX512 | {_VNNI, _BF16},
        (*_AVX512_FLAGS, "-mavx512vnni", "-mavx512bf16"),
        multiplies=True,
    ),
    KernelSet(
        "amx",
        "x86_64",
        _AVX512 | {_VNNI, _BF16} | _AMX,
        (
            *_AVX512_FLAGS,
            *("-mavx512vnni", "-mavx512bf16"),
            *("-mamx-tile", "-mamx-bf16", "-mamx-int8"),
        ),
        multiplies=True,
    ),
    KernelSet("neon", "aarch64", frozenset({"asimd"}), ("-mcpu=generic",)),
    KernelSet(
        "neon_dotprod",
        "aarch64",
        frozenset({"asimd", "asimddp"}),
        ("-mcpu=generic+dotprod",),
        multiplies=True,
    ),
    KernelSet(
        "neon_bf16",
        "aarch64",
        frozenset({"asimd", "asimddp", "bf16"}),
        ("-mcpu=generic+dotprod+bf16",),
        multiplies=True,
    ),
)


def usable_sets(
    machine: str, features: Collection[str], *, most: CpuIsa = "auto", float32: bool = False
) -> list[KernelSet]:
    """Those that the processor can run, the most capable last; none above ``most``, which may name a set
    of another machine: then there is none."""
    allowed = [kernels for kernels in KERNEL_SETS if kernels.machine == machine]
    if most != "auto":
        names = [kernels.name for kernels in allowed]
        allowed = allowed[: names.index(most) + 1] if most in names else []
    return [
        kernels
        for kernels in allowed
        if kernels.needs <= set(features) and not (float32 and kernels.multiplies)
    ]


def machine() -> str:
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def cpu_features() -> set[str]:
    """The processor's feature flags that this process may use; empty if the system does not list them."""
    if platform.system() == "Darwin" and machine() == "aarch64":
        return {"asimd", "asimddp"}  # all of Apple's
    if not _CPU_INFO.is_file():
        return set()
    for line in _CPU_INFO.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            found = set(line.partition(":")[2].split())
            return found - _AMX if "amx_tile" in found and not may_use_tiles() else found
    return set()
