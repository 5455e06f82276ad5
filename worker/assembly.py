"""From settings to the worker's parts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from millpond.errors import InvalidRequestError
from millpond.models.identity import model_identity
from millpond.models.presets import Preset
from millpond.models.tokenization import ByteTokenizer, FolderTokenizer, Tokenizer
from millpond.settings import Settings
from worker.engines import build_engine
from worker.engines.base import Engine, EngineConfig
from worker.engines.remote.config import RemoteConfig
from worker.engines.simulated import SimulatedConfig, SimulatedCosts, SimulatedFaults
from worker.window import WindowPolicy


def window_policy(settings: Settings) -> WindowPolicy:
    """The policy of that name; ``window_max_jobs`` is the fixed policy's batch size."""
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


def prepare_folder(settings: Settings, preset: Preset) -> Path | None:
    """The folder with the model, or only its tokenizer if it runs elsewhere. None: there are no files.

    It may have to be converted or downloaded first, which can take long. Raises ModelLoadError.
    """
    if settings.counts_bytes:
        return None
    from worker.weights import prepare_model, prepare_tokenizer

    if settings.engine == "remote":
        return prepare_tokenizer(preset, settings.cache_dir)
    return prepare_model(preset, settings.cache_dir)


def identity_of(settings: Settings, preset: Preset, folder: Path | None) -> str:
    """The identity of the model in ``folder``; of a model behind a chat route only its name is known."""
    made_by = settings.engine if settings.engine == "simulated" else f"chat {settings.model_name}"
    return model_identity(folder, preset, made_by=made_by)


def worker_engine(
    settings: Settings,
    preset: Preset,
    folder: Path | None,
    *,
    upstream: RemoteConfig | None = None,
) -> tuple[Tokenizer, Callable[[], Engine]]:
    """The tokenizer, and a function that builds the engine on its thread. Raises ModelLoadError.

    ``folder`` is that of `prepare_folder`; ``upstream`` is the server of the vllm engine.
    """
    tokenizer = ByteTokenizer() if folder is None else FolderTokenizer(folder)
    config = EngineConfig(
        engine=settings.engine,
        model_folder=None if settings.engine in ("remote", "vllm") else folder,
        preset=preset,
        dtype=settings.dtype,
        device=settings.device,
        slots=settings.slots,
        kv_tokens=settings.kv_tokens,
        memory_share=settings.memory_share,
        max_batched_tokens=settings.max_batched_tokens,
        prefix_cache_tokens=settings.prefix_cache_tokens,
        speculative_tokens=settings.speculative_tokens,
        weights=settings.weights,
        cpu_isa=settings.cpu_isa,
        cache_dir=settings.cache_dir,
        adapters=settings.adapters,
    )
    simulated = simulated_config(settings.simulated)
    remote = remote_config(settings) if settings.engine == "remote" else upstream
    return tokenizer, lambda: build_engine(config, tokenizer, simulated=simulated, remote=remote)


def remote_config(settings: Settings) -> RemoteConfig:
    """The ``remote_*`` settings as the engine's own type. Raises InvalidRequestError."""
    assert settings.remote_url is not None, "checked with the settings"
    given = settings.remote_api_key
    key = None if given is None else given.get_secret_value()
    if settings.remote_api_key_file is not None:
        try:
            key = settings.remote_api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError(
                "remote_api_key_file", f"cannot be read ({type(error).__name__})"
            ) from error
    return RemoteConfig(
        url=settings.remote_url,
        model=settings.remote_model,
        api_key=key,
        route=settings.remote_route,
        timeout_s=settings.remote_timeout_s,
    )


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
