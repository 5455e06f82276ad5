"""From settings to the worker's parts."""

from collections.abc import Callable
from typing import Any

from millpond.errors import InvalidRequestError
from millpond.presets import Preset
from millpond.settings import Settings
from millpond.tokenization import ByteTokenizer, FolderTokenizer, Tokenizer
from worker.engines import build_engine
from worker.engines.base import Engine, EngineConfig
from worker.engines.simulated import SimulatedConfig, SimulatedCosts, SimulatedFaults
from worker.window import WindowPolicy


def window_policy(settings: Settings) -> WindowPolicy:
    """The policy by its name; ``window_max_jobs`` is the fixed policy's batch."""
    wait_s = settings.window_max_wait_ms / 1000
    match settings.window:
        case "fixed":
            return WindowPolicy.fixed(settings.window_max_jobs)
        case "sliding":
            return WindowPolicy.sliding(settings.window_max_jobs, wait_s)
        case "at-once":
            return WindowPolicy.at_once(settings.window_max_jobs)
        case "hybrid":
            return WindowPolicy.hybrid(settings.window_min_jobs, settings.window_max_jobs, wait_s)


def worker_engine(settings: Settings, preset: Preset) -> tuple[Tokenizer, Callable[[], Engine]]:
    """The tokenizer, and what builds the engine once its thread runs.

    Makes the model's folder first, which can take long. Raises ModelLoadError.
    """
    tokenizer: Tokenizer
    if settings.engine == "simulated":
        folder, tokenizer = None, ByteTokenizer()
    else:
        from worker.weights import prepare_model

        folder = prepare_model(preset, settings.cache_dir)
        tokenizer = FolderTokenizer(folder)
    config = EngineConfig(
        engine=settings.engine,
        model_folder=folder,
        preset=preset,
        dtype=settings.dtype,
        device=settings.device,
        slots=settings.slots,
        kv_tokens=settings.kv_tokens,
        weights=settings.weights,
        cache_dir=settings.cache_dir,
    )
    simulated = simulated_config(settings.simulated)
    return tokenizer, lambda: build_engine(config, tokenizer, simulated=simulated)


def simulated_config(fields: dict[str, Any]) -> SimulatedConfig:
    """The setting ``simulated`` as the engine's own types. Raises InvalidRequestError."""
    known = dict(fields)
    try:
        return SimulatedConfig(
            costs=SimulatedCosts(**known.pop("costs", {})),
            faults=SimulatedFaults(**known.pop("faults", {})),
            **known,
        )
    except TypeError as error:
        raise InvalidRequestError("simulated", str(error)) from error
