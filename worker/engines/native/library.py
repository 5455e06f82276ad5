"""The kernels for this machine: out of the wheel, or compiled once and kept on disk."""

import ctypes
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from millpond.settings.types import CpuIsa
from worker.engines.native import compiling
from worker.engines.native.compiling import NoKernelsError
from worker.engines.native.kernel_sets import KernelSet, cpu_features, machine, usable_sets

_log = logging.getLogger(__name__)


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
        return {2: np.uint16, 4: np.float32}[self.activation_bytes]

    @property
    def quant_type(self) -> type:
        return {1: np.uint8, 2: np.uint16}[self.functions.millpond_quant_bytes()]

    @property
    def activation_bytes(self) -> int:
        return int(self.functions.millpond_active_bytes())

    @property
    def stored_bytes(self) -> int:
        """Of each key and each value."""
        return 4 if self.float32 else 2


def load_library(cache_dir: Path, isa: CpuIsa = "auto", *, float32: bool = False) -> Library:
    """The most capable kernels up to ``isa`` that this processor runs. Raises NoKernelsError."""
    usable = usable_sets(machine(), cpu_features(), most=isa, float32=float32)
    if not usable:
        up_to = "" if isa == "auto" else f" up to {isa}"
        raise NoKernelsError(f"there are no kernels{up_to} for this processor ({machine()})")
    return load_set(usable[-1], cache_dir, float32=float32)


def load_set(kernels: KernelSet, cache_dir: Path, *, float32: bool = False) -> Library:
    """These kernels, which the processor must be able to run: those in the wheel, or those in
    ``cache_dir``, compiled first if they are not there. Raises NoKernelsError."""
    prebuilt = compiling.PREBUILT / compiling.prebuilt_name(kernels, float32=float32)
    if prebuilt.is_file():
        try:
            return Library(kernels, ctypes.CDLL(str(prebuilt)), float32)
        except OSError as error:  # of another C library
            _log.warning("%s cannot be loaded, so kernels are compiled: %s", prebuilt, error)
    flags = compiling.compile_flags(kernels, float32=float32)
    kind = f"{kernels.name}-float32" if float32 else kernels.name
    name = f"millpond-{kind}-{compiling.fingerprint(flags)}.so"
    path = cache_dir.expanduser() / "kernels" / name
    try:
        if not path.is_file():
            compiling.compile_library(compiling.find_compiler(), flags, path)
            _log.info("compiled kernels, once, to %s", path)
        return Library(kernels, ctypes.CDLL(str(path)), float32)
    except OSError as error:
        raise NoKernelsError(f"{path}: {error}") from error
