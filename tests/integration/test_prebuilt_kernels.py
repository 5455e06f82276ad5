"""Kernels that came with the wheel: no compiler is needed, and another compiler gives the same bits."""

import importlib.util
import logging
from pathlib import Path

import pytest
import torch

from tests.conftest import skip_or_fail
from tests.integration.test_kernel_sets import PLAIN, Load, load, logits_of
from worker.engines.native import compiling
from worker.engines.native.kernel_sets import KERNEL_SETS
from worker.engines.native.prebuilding import prebuild

__all__ = ["load"]  # a fixture

FIRST = next(kernels for kernels in KERNEL_SETS if kernels.name == PLAIN[0]) if PLAIN else None


def test_a_wheels_kernels_have_the_bits_of_compiled_ones(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if FIRST is None or importlib.util.find_spec("ziglang") is None:
        skip_or_fail("no kernels for this processor, or no ziglang")
    assert FIRST is not None
    compiled = logits_of(load(FIRST.name, dtype="float32"))
    prebuild(FIRST, tmp_path, float32=True)
    monkeypatch.setattr(compiling, "PREBUILT", tmp_path)
    monkeypatch.setattr(compiling, "find_compiler", lambda: None)
    loaded = load(FIRST.name, dtype="float32", cache_dir=tmp_path / "cache")
    assert torch.equal(logits_of(loaded), compiled)


def test_kernels_that_cannot_be_loaded_are_compiled(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if FIRST is None:
        pytest.skip("no kernels for this processor")
    (tmp_path / compiling.prebuilt_name(FIRST, float32=True)).write_bytes(b"of another system")
    monkeypatch.setattr(compiling, "PREBUILT", tmp_path)
    with caplog.at_level(logging.WARNING):
        assert load(FIRST.name, dtype="float32").native is not None
    assert "cannot be loaded" in caplog.text
