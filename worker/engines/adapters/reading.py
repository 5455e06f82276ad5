"""Reads LoRA adapters in the format that the `peft` library writes.

A folder has ``adapter_config.json`` and ``adapter_model.safetensors``.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from millpond.errors import ModelLoadError

_PREFIX = "base_model.model."
_TENSOR = re.compile(r"(.+)\.lora_([AB])\.weight")
# Each of these, set to anything true, makes more of an adapter than two matrices and a scale.
_REFUSED_SETTINGS = (
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
    "lora_bias",
    "alora_invocation_tokens",
)


@dataclass(frozen=True, slots=True)
class Pair:
    """One adapter's matrices for one layer: ``a`` is ``[rank, in]``, ``b`` is ``[out, rank]``."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


# An adapter's matrices by the path of the layer they belong to.
Adapter = Mapping[str, Pair]


def read_adapters(model: Any, folders: Mapping[str, str]) -> dict[str, Adapter]:
    """The adapters by name, in the model's own type.

    Raises ModelLoadError for a folder that is not a plain LoRA adapter of this model.
    """
    return {name: _read(Path(folder).expanduser(), model) for name, folder in folders.items()}


def _read(folder: Path, model: Any) -> Adapter:
    config = _config(folder)
    file = folder / "adapter_model.safetensors"
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"{file}: {error}") from error
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _TENSOR.fullmatch(key.removeprefix(_PREFIX))
        if match is None:
            raise ModelLoadError(f"{file}: {key} is no matrix of a LoRA adapter")
        halves.setdefault(match[1], {})[match[2]] = tensor.to(model.device, model.dtype)
    return {
        path: Pair(half["A"], half["B"], _scale(config, path, half["A"].shape[0]))
        for path, half in halves.items()
        if _fits(model, path, half, file)
    }


def _fits(model: Any, path: str, half: dict[str, torch.Tensor], file: Path) -> bool:
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        raise ModelLoadError(f"{file}: this model has no layer {path}") from None
    if not hasattr(layer, "in_features") or path == "lm_head":
        raise ModelLoadError(f"{file}: adapters of {path} are not supported")
    if half.keys() != {"A", "B"}:
        raise ModelLoadError(f"{file}: {path} has one matrix without the other")
    a, b = half["A"].shape, half["B"].shape
    if (a[-1], b[0], a[0]) != (layer.in_features, layer.out_features, b[-1]):
        raise ModelLoadError(
            f"{file}: {path} is {layer.in_features} to {layer.out_features} in this model, and "
            f"{a[-1]} to {b[0]} over ranks {a[0]} and {b[-1]} in the adapter"
        )
    return True


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file}: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ModelLoadError(f"{file}: is no LoRA adapter's")
    for setting in _REFUSED_SETTINGS:
        if config.get(setting):
            raise ModelLoadError(f"{file}: {setting} is not supported")
    if config.get("bias", "none") != "none":
        raise ModelLoadError(f"{file}: bias {config['bias']!r} is not supported")
    return config


def _scale(config: dict[str, Any], path: str, rank: int) -> float:
    alpha = float(config.get("lora_alpha", rank))
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
