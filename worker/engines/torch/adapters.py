"""LoRA adapters beside the model's linear layers, chosen for each row of one batch.

A row of the adapter gets ``y + B(A(x)) * scale`` where the model alone gives ``y``; rows of different
adapters, and of none, share the forward pass. Folders are in the format that the `peft` library
writes: ``adapter_config.json`` and ``adapter_model.safetensors``.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import linear

from millpond.errors import ModelLoadError
from worker.engines.torch.linear import PackedLinear

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


class TokenGroups:
    """Which tokens of the forward pass under way belong to which adapter; shared by all layers."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.indexes: dict[str, torch.Tensor] = {}

    def select(self, spans: Iterable[tuple[str | None, int]]) -> None:
        """``spans`` are adapter and number of tokens, row by row, in the order of the tokens."""
        places: dict[str, list[int]] = {}
        start = 0
        for adapter, length in spans:
            if adapter is not None:
                places.setdefault(adapter, []).extend(range(start, start + length))
            start += length
        self.indexes = {
            name: torch.tensor(found, device=self._device) for name, found in places.items()
        }


@dataclass(frozen=True, slots=True)
class Pair:
    """One adapter's matrices for one layer: ``a`` is ``[rank, in]``, ``b`` is ``[out, rank]``."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


class AdaptedLinear(nn.Module):
    """A linear layer with adapters beside it. ``pairs`` by adapter; may be added to."""

    def __init__(self, base: nn.Module, groups: TokenGroups) -> None:
        super().__init__()
        self.base = base
        self.in_features = base.in_features
        self.out_features = base.out_features
        self.pairs: dict[str, Pair] = {}
        self._groups = groups

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.base(x)
        for name, index in self._groups.indexes.items():
            pair = self.pairs.get(name)
            if pair is not None:
                rows = x.reshape(-1, x.shape[-1]).index_select(0, index)
                added = linear(linear(rows, pair.a), pair.b) * pair.scale
                y = y.reshape(-1, y.shape[-1]).index_add(0, index, added).view(y.shape)
        return y


def attach(model: Any, folders: Mapping[str, Path]) -> TokenGroups:
    """Load the adapters and put them beside the model's layers, in place.

    Raises ModelLoadError for a folder that is not a plain LoRA adapter of this model.
    """
    groups = TokenGroups(model.device)
    for name, folder in folders.items():
        pairs = _read(folder.expanduser(), model)
        for path, pair in pairs.items():
            _adapted(model, path, groups).pairs[name] = pair
    return groups


def _adapted(model: Any, path: str, groups: TokenGroups) -> AdaptedLinear:
    parent, _, child = path.rpartition(".")
    layer = model.get_submodule(path)
    if not isinstance(layer, AdaptedLinear):
        layer = AdaptedLinear(layer, groups)
        setattr(model.get_submodule(parent), child, layer)
    return layer


def _read(folder: Path, model: Any) -> dict[str, Pair]:
    """An adapter's matrices by the path of the layer they belong to, in the model's own type."""
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
    if not isinstance(layer, nn.Linear | PackedLinear | AdaptedLinear) or path == "lm_head":
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
