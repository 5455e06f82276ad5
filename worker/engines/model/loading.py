"""Load a model folder, and refuse a model that would be served wrongly."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from millpond.errors import InvalidRequestError, ModelLoadError, UnsupportedModelError
from millpond.models.architecture import SIZE_NAMES, Architecture
from millpond.models.memory_plan import CARD_PAGE_TOKENS, Footprint
from millpond.models.tokenization import Tokenizer
from worker.engines.adapters.reading import Adapter, read_adapters
from worker.engines.base import Device, DType, EngineConfig
from worker.engines.model.probe_text import probe_tokens
from worker.engines.native.compiling import NoKernelsError
from worker.engines.native.kernel_sets import cpu_features
from worker.engines.native.kernels import NativeKernels
from worker.engines.native.library import Library, load_library
from worker.engines.native.weights import NotNativeError, Weights, check_native
from worker.engines.paging.pages import PAGE_TOKENS
from worker.engines.torch import attention
from worker.engines.torch.adapters import RowAdapters, attach
from worker.engines.torch.fusing import fuse_linears
from worker.engines.torch.kv_pool import KVLayout
from worker.engines.torch.linear import pack_linears
from worker.engines.torch.varlen import Kernel, find_kernel

_log = logging.getLogger(__name__)

_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
# Set to anything true, each of these changes attention in a way that the engine does not follow.
_REFUSED_SETTINGS = (
    "attn_logit_softcapping",
    "use_bidirectional_attention",
    "is_encoder_decoder",
    "num_kv_shared_layers",
    "attention_chunk_size",
    "alibi",
)
# Rope that turns a token by its position alone.
_ROPE_TYPES = frozenset({"default", "linear", "llama3", "yarn"})
# These rotate by the longest row of the batch, so beyond the original length a row would depend on company.
_LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """``windows``: each layer's sliding window, None for full attention.

    With ``native``, the kernels compute; ``model`` is then only what they are checked against. ``flash`` is
    the attention kernel on cards that have it.
    ``adapters`` says to the layers of ``model`` which tokens are whose, if adapters are loaded.
    """

    model: Any
    dtype: torch.dtype
    device: torch.device
    layout: KVLayout
    architecture: Architecture
    windows: tuple[int | None, ...]
    context_tokens: int
    native: NativeKernels | None = None
    flash: Kernel | None = None
    adapters: RowAdapters | None = None

    @property
    def footprint(self) -> Footprint:
        """Its memory needs in addition to the weights."""
        native = self.native
        activation_bytes = None if native is None else native.library.activation_bytes
        columns = 0 if native is None else native.model.adapter_columns
        return Footprint(
            self.architecture,
            self.dtype.itemsize,
            page_tokens=self.layout.page_tokens,
            activation_bytes=activation_bytes,
            adapter_bytes=columns * (activation_bytes or 0),
            gathers=native is None and self.flash is None,
            graphs=self.flash is not None,
        )

    @property
    def backend(self) -> str:
        """What computes, as receipts name it."""
        if self.native is not None:
            return f"native {self.native.library.kernels.name}"
        return f"torch {self.device.type}"

    @property
    def dtype_name(self) -> str:
        if self.native is not None and self.native.weights == "int8":
            return "int8"
        return str(self.dtype).removeprefix("torch.")

    def without_reference(self) -> "LoadedModel":
        """Drop transformers' copy of the weights if the kernels compute."""
        return self if self.native is None else replace(self, model=None, adapters=None)


def choose_device(device: Device) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError("device cuda: torch sees no CUDA device")
    return torch.device(device)


def choose_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """``auto`` is the fastest type in which torch computes on the device."""
    if dtype != "auto":
        chosen: torch.dtype = getattr(torch, dtype)
        return chosen
    if device.type == "cuda":
        # Not is_bf16_supported(): it says yes on a T4, which only emulates bfloat16.
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16
    return torch.bfloat16 if cpu_features() & {"avx512_bf16", "amx_bf16"} else torch.float32


def load(engine: EngineConfig, tokenizer: Tokenizer) -> LoadedModel:
    """Load the folder's weights (safetensors only, no code of the model's own) onto the device.

    ``tokenizer`` reads the text on which int8 is calibrated.

    Raises ModelLoadError, and UnsupportedModelError for an architecture that cannot be served.
    """
    folder = engine.model_folder
    if folder is None:
        raise ModelLoadError("the transformers engine needs a model folder")
    attention.register()
    transformers_logging.disable_progress_bar()
    device = choose_device(engine.device)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        check_config(config)
        library = _find_kernels(config, device, engine)
        dtype = choose_dtype(engine.dtype, device)
        if library is not None:
            dtype = torch.float32 if library.float32 else torch.bfloat16
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=attention.ATTENTION_NAME,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except ModelLoadError:
        raise
    except Exception as error:  # transformers raises many kinds
        raise ModelLoadError(f"{folder}: {error}") from error
    loaded = adopt(model.to(device))
    adapters = read_adapters(model, engine.adapters)
    if library is not None:
        loaded = replace(loaded, native=_pack(loaded, library, engine, tokenizer, adapters))
    else:
        pack_linears(model)
        fuse_linears(model)
    return with_adapters(loaded, adapters)


def with_adapters(loaded: LoadedModel, adapters: Mapping[str, Adapter]) -> LoadedModel:
    """With these adapters beside the layers of transformers' model."""
    return replace(loaded, adapters=attach(loaded.model, adapters)) if adapters else loaded


def _find_kernels(config: Any, device: torch.device, engine: EngineConfig) -> Library | None:
    """The kernels for this model on this machine; None, and the log says why, where torch computes.

    Raises ModelLoadError where that is refused.
    """
    float32 = engine.dtype == "float32" and engine.weights != "int8"
    try:
        if device.type != "cpu" or engine.dtype == "float16":
            raise NotNativeError("the kernels are for float32, bfloat16 and int8 on the CPU")
        check_native(config)
        return load_library(engine.cache_dir, engine.cpu_isa, float32=float32)
    except (NotNativeError, NoKernelsError) as error:
        if engine.weights == "int8":
            raise ModelLoadError(f"weights int8: {error}") from error
        _log.info("%s runs on torch: %s", engine.preset.name, error)
        return None


def _pack(
    loaded: LoadedModel,
    library: Library,
    engine: EngineConfig,
    tokenizer: Tokenizer,
    adapters: Mapping[str, Adapter],
) -> NativeKernels:
    weights: Weights = "float32" if library.float32 else "bfloat16"
    return NativeKernels.load(
        loaded.model,
        loaded.windows,
        library,
        context_tokens=min(loaded.context_tokens, engine.preset.context_tokens),
        weights="int8" if engine.weights == "int8" else weights,
        calibration=probe_tokens(tokenizer, loaded.architecture.vocab_size),
        adapters=adapters,
    )


def adopt(model: Any) -> LoadedModel:
    """Take a model in memory as it is, its attention switched to ours."""
    attention.register()
    config = model.config
    check_config(config)
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModelError(f"{_name(config)}: transformers cannot switch its attention")
    model.set_attn_implementation(attention.ATTENTION_NAME)
    model.eval()
    sizes = architecture_of(config)
    flash = find_kernel(sizes.head_dim, model.dtype, model.device)
    layout = KVLayout(
        num_layers=sizes.num_layers,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        dtype=model.dtype,
        device=model.device,
        page_tokens=PAGE_TOKENS if flash is None else CARD_PAGE_TOKENS,
    )
    return LoadedModel(
        model=model,
        dtype=model.dtype,
        device=model.device,
        layout=layout,
        architecture=sizes,
        windows=layer_windows(config),
        context_tokens=context_limit(config),
        flash=flash,
    )


def check_config(config: Any) -> None:
    """Raise UnsupportedModelError for a config that the attention here does not support."""
    name = _name(config)
    if config.get_text_config() is not config:
        raise UnsupportedModelError(f"{name}: only text models are served")
    for setting in _REFUSED_SETTINGS:
        if getattr(config, setting, None):
            raise UnsupportedModelError(f"{name}: {setting} is not supported")
    unknown = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if unknown:
        raise UnsupportedModelError(
            f"{name}: layers of type {', '.join(sorted(unknown))} are not supported"
        )
    for rope in _ropes(config):
        rope_type = rope.get("rope_type") or "default"
        if rope_type not in _ROPE_TYPES | _LENGTH_DEPENDENT_ROPE:
            raise UnsupportedModelError(f"{name}: rope of type {rope_type} is not supported")


def architecture_of(config: Any) -> Architecture:
    """Raises UnsupportedModelError for a config without the usual sizes."""
    # By attribute: some families store these under names of their own.
    named = {name: getattr(config, name, None) for name in SIZE_NAMES}
    try:
        return Architecture.from_config(config.to_dict() | named)
    except InvalidRequestError as error:
        raise UnsupportedModelError(f"{_name(config)}: {error}") from error


def layer_windows(config: Any) -> tuple[int | None, ...]:
    """Each layer's sliding window, None for full attention."""
    window: int | None = getattr(config, "sliding_window", None)
    layer_types: list[str] | None = getattr(config, "layer_types", None)
    if layer_types is None:
        return (window,) * int(config.num_hidden_layers)
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def context_limit(config: Any) -> int:
    """The longest row that the model's positions allow."""
    limits = [int(config.max_position_embeddings)]
    original = original_context(config)
    if any(rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE for rope in _ropes(config)):
        limits += [original] if original is not None else []
    return min(limits)


def original_context(config: Any) -> int | None:
    """How long rows were before the model's rope was scaled; None if the config does not say."""
    named = [rope.get("original_max_position_embeddings") for rope in _ropes(config)]
    named.append(getattr(config, "original_max_position_embeddings", None))
    return next((int(length) for length in named if length), None)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The config's rope, or those of each type of layers."""
    given: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    nested = [rope for rope in given.values() if isinstance(rope, dict)]
    return nested or [given]


def _name(config: Any) -> str:
    return str((getattr(config, "architectures", None) or [config.model_type])[0])
