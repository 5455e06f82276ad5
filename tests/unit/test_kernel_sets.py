"""Which kernels a processor runs."""

from pathlib import Path

import pytest

from worker.engines.native import kernel_sets
from worker.engines.native.kernel_sets import KERNEL_SETS, cpu_features, usable_sets
from worker.engines.native.tile_permission import may_use_tiles

ZEN_2 = {"avx2", "fma", "sse2"}
ALDER_LAKE = ZEN_2 | {"avx_vnni"}
SKYLAKE_X = ZEN_2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
ICE_LAKE = SKYLAKE_X | {"avx512_vnni"}
ZEN_4 = ICE_LAKE | {"avx512_bf16"}
SAPPHIRE_RAPIDS = ZEN_4 | {"amx_tile", "amx_bf16", "amx_int8"}
GRAVITON_2 = {"fp", "asimd", "asimddp"}
GRAVITON_3 = GRAVITON_2 | {"bf16"}


@pytest.mark.parametrize(
    ("machine", "features", "best", "best_in_float32"),
    [
        ("x86_64", {"sse2"}, None, None),
        ("x86_64", {"avx2"}, None, None),
        ("x86_64", ZEN_2, "avx2", "avx2"),
        ("x86_64", ALDER_LAKE, "avx2_vnni", "avx2"),
        ("x86_64", SKYLAKE_X, "avx512", "avx512"),
        ("x86_64", ICE_LAKE, "avx512_vnni", "avx512"),
        ("x86_64", ZEN_4, "avx512_bf16", "avx512"),
        ("x86_64", SAPPHIRE_RAPIDS, "amx", "avx512"),
        ("x86_64", SKYLAKE_X - {"avx512dq"}, "avx2", "avx2"),
        ("aarch64", {"fp", "asimd"}, "neon", "neon"),
        ("aarch64", GRAVITON_2, "neon_dotprod", "neon"),
        ("aarch64", GRAVITON_3, "neon_bf16", "neon"),
        ("riscv64", ZEN_4, None, None),
    ],
)
def test_the_most_capable_kernels_are_taken(
    machine: str, features: set[str], best: str | None, best_in_float32: str | None
) -> None:
    for float32, wanted in ((False, best), (True, best_in_float32)):
        usable = usable_sets(machine, features, float32=float32)
        assert (usable[-1].name if usable else None) == wanted


def test_a_cap_takes_the_best_below_it() -> None:
    assert usable_sets("x86_64", ZEN_4, most="avx512")[-1].name == "avx512"
    assert usable_sets("x86_64", ZEN_2, most="avx512_bf16")[-1].name == "avx2"
    assert usable_sets("x86_64", SKYLAKE_X, most="avx2_vnni")[-1].name == "avx2"


@pytest.mark.parametrize("most", [k.name for k in KERNEL_SETS if k.machine == "aarch64"])
def test_a_cap_of_another_machine_leaves_none(most: str) -> None:
    assert usable_sets("x86_64", ZEN_4, most=most) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(("granted", "found"), [(True, SAPPHIRE_RAPIDS), (False, ZEN_4)])
def test_tiles_need_the_systems_permission(
    granted: bool, found: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"model name\t: Xeon\nflags\t\t: {' '.join(sorted(SAPPHIRE_RAPIDS))}\n")
    monkeypatch.setattr(kernel_sets, "_CPU_INFO", info)
    monkeypatch.setattr(kernel_sets, "may_use_tiles", lambda: granted)
    assert cpu_features() == found


@pytest.mark.skipif("amx_tile" in cpu_features(), reason="this processor has tiles")
def test_a_processor_without_tiles_grants_none() -> None:
    assert not may_use_tiles()
