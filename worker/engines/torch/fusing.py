"""Products of one input as one: queries, keys and values; gate and up."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

# The names under which transformers' models have such layers side by side, in the order of their calls.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class _Fused:
    """The stacked weights, and the results of the input that came last, until all parts have theirs."""

    def __init__(self, linears: list[nn.Linear]) -> None:
        self.sizes = [part.out_features for part in linears]
        self.weight = torch.cat([part.weight.detach() for part in linears])
        biases = [part.bias.detach() for part in linears if part.bias is not None]
        self.bias = torch.cat(biases) if biases else None
        self._input: torch.Tensor | None = None
        self._results: list[torch.Tensor | None] = []

    def part(self, x: torch.Tensor, number: int) -> torch.Tensor:
        if self._input is not x or self._results[number] is None:
            self._input = x
            self._results = [*torch.split(linear(x, self.weight, self.bias), self.sizes, -1)]
        result, self._results[number] = self._results[number], None
        assert result is not None
        if not any(rest is not None for rest in self._results):
            self._input = None
        return result


class FusedPart(nn.Module):
    """Stands where one of the layers stood. The model's own code calls it, and knows of nothing."""

    def __init__(self, fused: _Fused, number: int, part: nn.Linear) -> None:
        super().__init__()
        self.in_features = part.in_features
        self.out_features = part.out_features
        self._fused = fused
        self._number = number

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._fused.part(x, self._number)


def fuse_linears(model: Any) -> int:
    """Put together what reads one input, in place, on cards and in half precision; returns how many.

    Float32 stays as it is: there the engine promises the tokens of transformers' own products.
    """
    if model.device.type != "cuda" or model.dtype.itemsize != 2:
        return 0
    return fuse_all(model)


def fuse_all(model: Any) -> int:
    count = 0
    for parent in list(model.modules()):
        for names in _TOGETHER:
            parts: list[Any] = [getattr(parent, name, None) for name in names]
            if _fit(parts):
                fused = _Fused(parts)
                for number, (name, part) in enumerate(zip(names, parts, strict=True)):
                    setattr(parent, name, FusedPart(fused, number, part))
                count += 1
    return count


def _fit(parts: list[Any]) -> bool:
    if not all(type(part) is nn.Linear for part in parts):
        return False
    inputs = {part.in_features for part in parts}
    biases = {part.bias is None for part in parts}
    return len(inputs) == len(biases) == 1
