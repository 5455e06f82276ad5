"""What the doctor makes of what it sees."""

from pathlib import Path
from typing import Any

import pytest

from millpond.doctor.engine import judge_engine, judge_vllm
from millpond.doctor.findings import Finding
from millpond.doctor.machine import judge_files, judge_kernel, judge_room
from millpond.doctor.model import available_bytes, judge_weights
from millpond.doctor.server import judge_replicas, judge_server

GOOD: dict[str, Any] = {
    "redis_version": "7.2.4",
    "valkey_version": "9.0.1",
    "maxmemory_policy": "noeviction",
    "maxmemory": 2**30,
    "used_memory": 2**20,
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
}
CPU: dict[str, Any] = {
    "torch": "2.13.0+cpu",
    "transformers": "5.0",
    "device": "cpu",
    "dtype": "bfloat16",
    "card_here": False,
    "kernels": "avx512_bf16",
    "kernels_error": None,
    "kernels_for_processor": True,
    "compiler": "/usr/bin/gcc",
}


def troubles(found: list[Finding]) -> dict[str, str]:
    """Topics of those that are not well, with their levels. Each says what to do."""
    bad = [finding for finding in found if finding.level != "ok"]
    assert all(finding.advice for finding in bad)
    assert all(finding.advice is None for finding in found if finding.level == "ok")
    return {finding.topic: finding.level for finding in bad}


def test_a_good_server_has_no_trouble_and_is_called_by_its_own_name() -> None:
    found = list(judge_server(GOOD, "everysec", allow_eviction=False))
    assert troubles(found) == {}
    assert found[0].found == "Valkey 9.0.1"
    assert "at most two seconds" in found[-1].found


@pytest.mark.parametrize(
    ("changes", "fsync", "expected"),
    [
        ({"redis_version": "6.2.1"}, "always", {"server version": "error"}),
        ({"maxmemory_policy": "allkeys-lru"}, "always", {"memory policy": "error"}),
        ({"maxmemory": 0}, "always", {"memory": "warning"}),
        ({"aof_enabled": 0}, "always", {"persistence": "warning"}),
        ({}, "no", {"persistence": "warning"}),
        ({"aof_last_write_status": "err"}, "always", {"persistence": "error"}),
        ({}, None, {}),
    ],
)
def test_servers(changes: dict[str, Any], fsync: str | None, expected: dict[str, str]) -> None:
    found = list(judge_server(GOOD | changes, fsync, allow_eviction=False))
    assert troubles(found) == expected


def test_eviction_that_is_allowed_is_a_warning() -> None:
    info = GOOD | {"maxmemory_policy": "allkeys-lru"}
    found = list(judge_server(info, "always", allow_eviction=True))
    assert troubles(found) == {"memory policy": "warning"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"card_here": True}, {"device": "warning"}),
        ({"kernels": None, "kernels_for_processor": False}, {"kernels": "warning"}),
        ({"kernels": None, "compiler": None}, {"kernels": "warning"}),
        ({"compiler": None}, {"compiler": "warning"}),
        ({"device": "cuda", "compiler": None, "card_here": True}, {}),
        ({"device_error": "torch sees no CUDA device"}, {"device": "error"}),
        ({"missing_package": "torch"}, {"packages": "error"}),
    ],
)
def test_engines(changes: dict[str, Any], expected: dict[str, str]) -> None:
    assert troubles(list(judge_engine(CPU | changes))) == expected


def test_vllm() -> None:
    assert troubles([judge_vllm("vllm", None)]) == {"vllm": "error"}
    assert troubles([judge_vllm("vllm", "/opt/vllm/bin/vllm")]) == {}


def test_machines(tmp_path: Path) -> None:
    assert troubles([judge_files(1024, 16_384)]) == {"open files": "warning"}
    assert troubles([judge_files(16_640, 16_384), judge_files(None, 16_384)]) == {}
    assert troubles(list(judge_kernel("0", "always [madvise] never"))) == {
        "vm.overcommit_memory": "warning"
    }
    assert troubles(list(judge_kernel("1", "[always] madvise never"))) == {
        "transparent huge pages": "warning"
    }
    assert list(judge_kernel(None, None)) == []
    assert "not-yet-there" in judge_room("data_dir", tmp_path / "not-yet-there" / "data").found


def test_weights_that_exceed_the_memory(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    1048576 kB\n")
    assert available_bytes(meminfo) == 2**30
    assert available_bytes(tmp_path / "none") is None
    assert troubles([judge_weights(2**29, 2, 2**30)]) == {}
    assert troubles([judge_weights(2**29, 4, 2**30)]) == {"memory for weights": "warning"}


@pytest.mark.parametrize(
    ("connected", "wanted", "levels"), [(0, 0, []), (2, 1, ["ok"]), (1, 2, ["error"])]
)
def test_replicas_that_a_submit_waits_for(connected: int, wanted: int, levels: list[str]) -> None:
    found = list(judge_replicas({"connected_slaves": connected}, wanted))
    assert [each.level for each in found] == levels
