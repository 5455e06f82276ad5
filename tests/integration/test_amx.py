"""The kernels for AMX on processors without it: C does what the tiles would (tests/emulation/tiles.h).

With the real instructions they are compiled and not run."""

import ctypes
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import skip_or_fail
from tests.integration.test_kernel_sets import LENGTHS, Load, load, logits_of
from worker.engines.model.loading import LoadedModel
from worker.engines.native import compiling
from worker.engines.native.kernel_sets import KERNEL_SETS
from worker.engines.native.library import Library
from worker.engines.native.prebuilding import prebuild

__all__ = ["load"]  # a fixture

AMX = next(kernels for kernels in KERNEL_SETS if kernels.name == "amx")
TILES = Path(__file__).parents[1] / "emulation" / "tiles.h"

OnTiles = Callable[[LoadedModel], LoadedModel]


@pytest.fixture(scope="module")
def on_tiles(tmp_path_factory: pytest.TempPathFactory) -> OnTiles:
    """The same packed model, computed by the set for AMX."""
    path = tmp_path_factory.mktemp("amx") / "tiles.so"
    flags = [*compiling.compile_flags(AMX, float32=False), "-include", str(TILES)]

    def on_tiles(loaded: LoadedModel) -> LoadedModel:
        assert loaded.native is not None
        if not path.exists():
            compiling.compile_library(compiling.find_compiler(), flags, path)
        library = Library(AMX, ctypes.CDLL(str(path)), float32=False)
        return replace(loaded, native=replace(loaded.native, library=library))

    return on_tiles


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_tiles_come_close_to_avx512(weights: str, load: Load, on_tiles: OnTiles) -> None:
    loaded = load("avx512_bf16", weights=weights)
    found, wanted = logits_of(on_tiles(loaded)), logits_of(loaded)
    assert torch.cosine_similarity(found, wanted, dim=-1).min() > 0.9995
    assert not torch.equal(found, wanted)


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_a_rows_bits_in_tiles_do_not_depend_on_its_company(
    weights: str, load: Load, on_tiles: OnTiles
) -> None:
    loaded = on_tiles(load("avx512_bf16", weights=weights))
    together = logits_of(loaded)
    for place, length in enumerate(LENGTHS):
        alone = logits_of(loaded, [length], chunk_tokens=150 if length % 2 else 16)
        assert torch.equal(alone[:, 0], together[:, place])


def test_both_compilers_know_the_instructions(tmp_path: Path) -> None:
    if importlib.util.find_spec("ziglang") is None:
        skip_or_fail("no ziglang")
    prebuild(AMX, tmp_path, float32=False)
    flags = compiling.compile_flags(AMX, float32=False)
    compiling.compile_library(compiling.find_compiler(), flags, tmp_path / "amx.so")
