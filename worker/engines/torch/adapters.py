"""LoRA adapters beside the model's linear layers, chosen for each row of one batch.

A row of the adapter gets ``y + B(A(x)) * scale`` where the model alone gives ``y``; rows of different
adapters, and of none, share the forward pass. Folders are in the format that the `peft` library
writes: ``adapter_config.json`` and ``adapter_model.safetensors``.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import linear

from millpond.errors import ModelLoadError
from worker.engines.torch.batch import NO_ADAPTER
from worker.engines.torch.fusing import FusedPart
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


class RowAdapters:
    """The adapters by number, and which token of the pass under way is whose; shared by all layers."""

    def __init__(self, names: Iterable[str]) -> None:
        self._numbers = {name: number for number, name in enumerate(names)}
        self._of_tokens: torch.Tensor | None = None
        self._shares: dict[tuple[tuple[int, int, float], ...], torch.Tensor] = {}

    def number(self, adapter: str | None) -> int:
        return NO_ADAPTER if adapter is None else self._numbers[adapter]

    @contextmanager
    def of(self, tokens: torch.Tensor) -> Iterator[None]:
        """During this pass the tokens belong to these adapters, ``[tokens]``. Else none has any."""
        self._of_tokens = tokens
        try:
            yield
        finally:
            self._of_tokens = None
            self._shares.clear()

    def shares(self, columns: "Columns") -> torch.Tensor | None:
        """``[tokens, columns]``: the adapter's scale where the token is its own, else 0. None if no token
        has an adapter."""
        if self._of_tokens is None:
            return None
        found = self._shares.get(columns.key)
        if found is None:
            own = self._of_tokens[:, None] == columns.adapters
            found = self._shares[columns.key] = own * columns.scales
        return found


class Columns:
    """Whose are the columns between a layer's two stacked matrices. ``pairs`` by the adapter's number."""

    def __init__(self, pairs: Mapping[int, "Pair"]) -> None:
        a = next(iter(pairs.values())).a
        self.key = tuple((n, pair.a.shape[0], pair.scale) for n, pair in pairs.items())
        ranks = torch.tensor([rank for _, rank, _ in self.key])
        numbers = torch.tensor([n for n, _, _ in self.key], dtype=torch.int32)
        scales = torch.tensor([scale for _, _, scale in self.key])
        self.adapters = numbers.repeat_interleave(ranks).to(a.device)
        self.scales = scales.repeat_interleave(ranks).to(a.device, a.dtype)


@dataclass(frozen=True, slots=True)
class Pair:
    """One adapter's matrices for one layer: ``a`` is ``[rank, in]``, ``b`` is ``[out, rank]``."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float


class AdaptedLinear(nn.Module):
    """A linear layer with adapters beside it, ``pairs`` by number.

    Their matrices are stacked, so that all adapters are two products whatever the rows, and what is not a
    token's own is zero in between: nothing depends on which rows there are.
    """

    def __init__(
        self, base: nn.Module, row_adapters: RowAdapters, pairs: Mapping[int, Pair]
    ) -> None:
        super().__init__()
        self.base = base
        self._row_adapters = row_adapters
        self._columns = Columns(pairs)
        self._a = torch.cat([pair.a for pair in pairs.values()])
        self._b = torch.cat([pair.b for pair in pairs.values()], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.base(x)
        shares = self._row_adapters.shares(self._columns)
        return y if shares is None else y + linear(linear(x, self._a) * shares, self._b)


def attach(model: Any, folders: Mapping[str, Path]) -> RowAdapters:
    """Load the adapters and put them beside the model's layers, in place.

    Raises ModelLoadError for a folder that is not a plain LoRA adapter of this model.
    """
    row_adapters = RowAdapters(folders)
    layers: dict[str, dict[int, Pair]] = {}
    for name, folder in folders.items():
        for path, pair in _read(folder.expanduser(), model).items():
            layers.setdefault(path, {})[row_adapters.number(name)] = pair
    for path, pairs in layers.items():
        parent, _, child = path.rpartition(".")
        adapted = AdaptedLinear(model.get_submodule(path), row_adapters, pairs)
        setattr(model.get_submodule(parent), child, adapted)
    return row_adapters


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
    if not isinstance(layer, nn.Linear | PackedLinear | FusedPart) or path == "lm_head":
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
