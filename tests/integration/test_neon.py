"""The kernels for ARM, cross-compiled by the compiler inside ziglang and run by qemu-user."""

import importlib.util
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import skip_or_fail
from tests.emulation.emulated import EmulatedFunctions
from tests.integration.test_kernel_sets import Load, load, logits_of
from tests.integration.test_native_sampling import row
from tests.knobs import ALL_KERNELS
from worker.engines.model.loading import LoadedModel
from worker.engines.native import compiling
from worker.engines.native.kernel_sets import KERNEL_SETS
from worker.engines.native.library import Library
from worker.engines.native.sampler import NativeSampler
from worker.engines.sampling.sampling import torch_sampler

__all__ = ["load"]  # a fixture

DRIVER = Path(__file__).parents[1] / "emulation" / "run_call.c"
SYSTEM = Path("/usr/aarch64-linux-gnu")  # its C library
SETS = {kernels.name: kernels for kernels in KERNEL_SETS if kernels.machine == "aarch64"}

only_in_full = pytest.mark.skipif(not ALL_KERNELS, reason="for MILLPOND_KERNELS=all")

OnArm = Callable[[LoadedModel, str], LoadedModel]


@pytest.fixture(scope="module")
def on_arm(tmp_path_factory: pytest.TempPathFactory) -> OnArm:
    """The same packed model, computed by a set of ARM's."""
    emulator = shutil.which("qemu-aarch64")
    if not (emulator and SYSTEM.is_dir() and importlib.util.find_spec("ziglang")):
        skip_or_fail("qemu-user, libc6-arm64-cross or ziglang is missing")
    folder = tmp_path_factory.mktemp("arm")

    def on_arm(loaded: LoadedModel, name: str) -> LoadedModel:
        native = loaded.native
        assert native is not None
        float32 = native.library.float32
        program = folder / f"{name}-{float32}"
        if not program.exists():
            flags = compiling.compile_flags(SETS[name], float32=float32)
            compiler = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.28"]
            command = [*compiler, *flags, str(DRIVER), "-lm", "-o", str(program)]
            subprocess.run(command, check=True, timeout=120)
        command = [str(emulator), "-L", str(SYSTEM), "-cpu", "max", str(program)]
        functions: Any = EmulatedFunctions(command, native.model, float32=float32)
        return replace(
            loaded, native=replace(native, library=Library(SETS[name], functions, float32))
        )

    return on_arm


@pytest.mark.parametrize(
    ("isa", "config"),
    [
        ("neon", {"dtype": "float32"}),
        pytest.param("neon", {"weights": "int8"}, marks=only_in_full),
        pytest.param("neon_dotprod", {"weights": "int8"}, marks=only_in_full),
        pytest.param("neon", {}, marks=only_in_full),
    ],
)
def test_arm_has_the_bits_of_x86(
    isa: str, config: dict[str, Any], load: Load, on_arm: OnArm
) -> None:
    """Of a set that widens bfloat16 as it does."""
    loaded = load("avx2", **config)
    assert torch.equal(logits_of(on_arm(loaded, isa)), logits_of(loaded))


def test_products_of_bfloat16_and_bytes_come_close(load: Load, on_arm: OnArm) -> None:
    loaded = load("avx2", weights="int8")
    found, wanted = logits_of(on_arm(loaded, "neon_bf16")), logits_of(loaded)
    assert torch.cosine_similarity(found, wanted, dim=-1).min() > 0.99
    assert not torch.equal(found, wanted)


def test_arm_draws_the_same_tokens(load: Load, on_arm: OnArm) -> None:
    loaded = on_arm(load("avx2", dtype="float32"), "neon")
    assert loaded.native is not None
    rng, vocab_size = random.Random(3), 1003
    rows = [row(rng, vocab_size) for _ in range(150)]
    logits = 4 * torch.randn(len(rows), vocab_size, generator=torch.Generator().manual_seed(3))
    ours = NativeSampler(loaded.native.library)(logits.clone(), range(len(rows)), rows)
    assert ours == torch_sampler(logits, range(len(rows)), rows)
