"""``python -m worker.engines.native.prebuilding``: the kernels of a wheel, so that it needs no compiler.

Built by the cross compiler inside the PyPI package ziglang, for a C library as old as the wheel's tag says.
"""

import argparse
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from worker.engines.native.compiling import (
    PREBUILT,
    compile_flags,
    compile_library,
    prebuilt_name,
)
from worker.engines.native.kernel_sets import KERNEL_SETS, KernelSet, machine

_C_LIBRARY = "gnu.2.17"  # of manylinux_2_17


def prebuild(kernels: KernelSet, folder: Path, *, float32: bool) -> Path:
    """Raises NoKernelsError where the compiler fails."""
    target = f"{kernels.machine}-linux-{_C_LIBRARY}"
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-s"]
    path = folder / prebuilt_name(kernels, float32=float32)
    compile_library(compiler, compile_flags(kernels, float32=float32), path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    machines = sorted({kernels.machine for kernels in KERNEL_SETS})
    parser.add_argument("--machine", choices=machines, default=machine())
    args = parser.parse_args()
    shutil.rmtree(PREBUILT, ignore_errors=True)
    wanted = [
        (kernels, float32)
        for kernels in KERNEL_SETS
        if kernels.machine == args.machine
        for float32 in (False, True)
        if not (float32 and kernels.multiplies)
    ]
    with ThreadPoolExecutor() as threads:
        for path in threads.map(lambda one: prebuild(one[0], PREBUILT, float32=one[1]), wanted):
            print(path)


if __name__ == "__main__":
    main()
