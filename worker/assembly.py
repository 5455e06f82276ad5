"""From settings to the worker's parts."""

from collections.abc import Callable

from millpond.presets import Preset
from millpond.settings import Settings
from millpond.tokenization import ByteTokenizer, FolderTokenizer, Tokenizer
from worker.engines import build_engine
from worker.engines.base import Engine, EngineConfig
from worker.window import WindowPolicy


def window_policy(settings: Settings) -> WindowPolicy:
    """The policy by its name; ``window_max_jobs`` is the fixed policy's batch."""
    wait_s = settings.window_max_wait_ms / 1000
    match settings.window:
        case "fixed":
            return WindowPolicy.fixed(settings.window_max_jobs)
        case "sliding":
            return WindowPolicy.sliding(settings.window_max_jobs, wait_s)
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
    )
    return tokenizer, lambda: build_engine(config, tokenizer)
