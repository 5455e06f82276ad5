"""The engines by name. Importing this package loads no torch."""

from millpond.errors import ModelLoadError
from millpond.models.tokenization import Tokenizer
from worker.engines.base import Engine, EngineConfig
from worker.engines.remote.config import RemoteConfig
from worker.engines.simulated import SimulatedConfig, SimulatedEngine

ENGINES = ("transformers", "vllm", "remote", "simulated")


def build_engine(
    config: EngineConfig,
    tokenizer: Tokenizer,
    *,
    simulated: SimulatedConfig | None = None,
    remote: RemoteConfig | None = None,
) -> Engine:
    """Build the engine that ``config.engine`` names; the torch engine loads its model here.

    ``remote`` is the server of the engines `remote` and `vllm`. Raises ModelLoadError when there is no
    such engine or its model cannot be served, and EngineNotReadyError when that may change by itself.
    """
    if config.engine == "simulated":
        return SimulatedEngine(config, tokenizer, simulated)
    if config.engine in ("remote", "vllm"):
        from worker.engines.remote.engine import RemoteEngine

        assert remote is not None
        return RemoteEngine.connect(config, tokenizer, remote)
    if config.engine == "transformers":
        from worker.engines.model.engine import TransformersEngine

        return TransformersEngine.load(config, tokenizer)
    raise ModelLoadError(f"engine {config.engine!r} is none of {', '.join(ENGINES)}")
