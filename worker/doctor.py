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
    kernels = kernel_facts(settings, float32=settings.dtype == "float32")
    dtype = str(choose_dtype(settings.dtype, device)).removeprefix("torch.")
    if settings.dtype == "auto" and device.type == "cpu" and kernels["kernels"] is not None:
        dtype = "bfloat16"  # which all kernels compute, whether or not torch is fast in it
    return known | {"device": device.type, "dtype": dtype} | kernels


def kernel_facts(settings: Settings, *, float32: bool) -> dict[str, Any]:
    """``kernels`` is the set that would compute; None: ``kernels_error`` says why, and torch does."""
    from worker.engines.native.compiling import NoKernelsError, find_compiler
    from worker.engines.native.kernel_sets import cpu_features, machine, usable_sets
    from worker.engines.native.library import load_library

    usable = usable_sets(machine(), cpu_features(), most=settings.cpu_isa, float32=float32)
    kernels = reason = None
    try:
        library = load_library(settings.cache_dir, settings.cpu_isa, float32=float32)
        kernels = library.kernels.name
    except NoKernelsError as error:
        reason = str(error)
    compiler = find_compiler()
    return {
        "kernels": kernels,
        "kernels_error": reason,
        "kernels_for_processor": bool(usable),
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
