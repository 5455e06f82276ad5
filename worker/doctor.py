"""``python -m worker.doctor``: what this machine computes with, as JSON on standard output.

For `millpond doctor`, which judges it. The kernels are compiled if they are not in the cache.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import orjson

from millpond.errors import MillpondError
from millpond.settings import Settings, load_settings

NVIDIA_CARDS = Path("/proc/driver/nvidia/gpus")


def facts(settings: Settings) -> dict[str, Any]:
    """``missing_package`` alone if the worker cannot run at all."""
    try:
        versions = {name: version(name) for name in ("torch", "transformers", "safetensors")}
    except PackageNotFoundError as error:
        return {"missing_package": error.name}
    from worker.engines.model.loading import choose_device, choose_dtype

    known: dict[str, Any] = {**versions, "card_here": NVIDIA_CARDS.is_dir()}
    try:
        device = choose_device(settings.device)
    except MillpondError as error:
        return known | {"device_error": str(error)}
    dtype = str(choose_dtype(settings.dtype, device)).removeprefix("torch.")
    return known | {"device": device.type, "dtype": dtype} | kernel_facts(settings.cache_dir)


def kernel_facts(cache_dir: Path) -> dict[str, Any]:
    from worker.engines.native.library import (
        CPU_FLAGS,
        NoKernelsError,
        cpu_flags,
        find_compiler,
        load_library,
    )

    lacking = sorted(CPU_FLAGS - cpu_flags())
    reason = None
    if not lacking:
        try:
            load_library(cache_dir)
        except NoKernelsError as error:
            reason = str(error)
    compiler = find_compiler()
    return {
        "processor_lacks": lacking,
        "kernels_error": reason,
        "compiler": None if compiler is None else " ".join(compiler),
    }


def main() -> int:
    try:
        found = facts(load_settings())
    except MillpondError as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(orjson.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
