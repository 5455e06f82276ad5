"""The model of the settings: is it known, is it here, and does the machine's memory take its weights."""

from collections.abc import Iterator
from pathlib import Path

from millpond.doctor.findings import Finding, error, ok, warning
from millpond.errors import MillpondError
from millpond.models.architecture import Architecture
from millpond.models.config import read_model_config
from millpond.models.presets import Preset, model_folder
from millpond.settings import Settings

MEMORY = Path("/proc/meminfo")


def examine_model(settings: Settings) -> Iterator[Finding]:
    try:
        preset = settings.preset()
    except MillpondError as failed:
        yield error("model", str(failed), "a preset, a folder, a GGUF file or a hub name: --model")
        return
    if settings.engine in ("simulated", "remote"):
        yield ok("model", f"{preset.name}, served by the {settings.engine} engine")
        return
    here = (model_folder(preset, settings.cache_dir) / "tokenizer.json").is_file()
    where = "its files are here" if here else "converted or downloaded at the first start"
    yield ok("model", f"{preset.name}: {where}")
    yield from _weights(settings, preset)


def _weights(settings: Settings, preset: Preset) -> Iterator[Finding]:
    try:
        config = read_model_config(preset, settings.cache_dir)
        parameters = Architecture.from_config(config).parameters
    except MillpondError as failed:
        yield error("model", str(failed), "docs/architecture.md says which models can be served")
        return
    available = available_bytes(MEMORY)
    if available is not None and parameters is not None:
        yield judge_weights(parameters, 4 if settings.dtype == "float32" else 2, available)


def judge_weights(parameters: int, bytes_each: int, available: int) -> Finding:
    """``available``: of this machine's memory, for a worker that computes on its CPU."""
    needed = parameters * bytes_each
    found = (
        f"{parameters:,} parameters take {needed / 2**30:.1f} GiB in {8 * bytes_each} bits; "
        f"{available / 2**30:.1f} GiB of the machine's memory are available"
    )
    if needed > available:
        advice = "a smaller model, or a card: millpond plan says what fits on it"
        return warning("memory for weights", found, advice)
    return ok("memory for weights", found)


def available_bytes(meminfo: Path) -> int | None:
    """None on another system than Linux."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    [line] = [line for line in lines if line.startswith("MemAvailable:")]
    return int(line.split()[1]) * 1024
