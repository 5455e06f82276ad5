"""LoRA adapters beside the model's linear layers, chosen for each row of one batch.

A row of the adapter gets ``y + B(A(x)) * scale`` where the model alone gives ``y``; rows of different
adapters, and of none, share the forward pass.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from worker.engines.adapters.reading import Adapter, Pair
from worker.engines.torch.batch import NO_ADAPTER


class RowAdapters:
    """The adapters by number, and which token of the pass under way is whose; shared by all layers."""

    def __init__(self, names: Iterable[str]) -> None:
        self._numbers = {name: number for number, name in enumerate(names)}
        self._of_tokens: torch.Tensor | None = None
        self._shares: dict[tuple[tuple[int, int, float], ...], torch.Tensor] = {}

    @property
    def names(self) -> Collection[str]:
        return self._numbers

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

    def __init__(self, pairs: Mapping[int, Pair]) -> None:
        a = next(iter(pairs.values())).a
        self.key = tuple((n, pair.a.shape[0], pair.scale) for n, pair in pairs.items())
        ranks = torch.tensor([rank for _, rank, _ in self.key])
        numbers = torch.tensor([n for n, _, _ in self.key], dtype=torch.int32)
        scales = torch.tensor([scale for _, _, scale in self.key])
        self.adapters = numbers.repeat_interleave(ranks).to(a.device)
        self.scales = scales.repeat_interleave(ranks).to(a.device, a.dtype)


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


def attach(model: Any, adapters: Mapping[str, Adapter]) -> RowAdapters:
    """Put the adapters beside the model's layers, in place."""
    row_adapters = RowAdapters(adapters)
    layers: dict[str, dict[int, Pair]] = {}
    for name, adapter in adapters.items():
        for path, pair in adapter.items():
            layers.setdefault(path, {})[row_adapters.number(name)] = pair
    for path, pairs in layers.items():
        parent, _, child = path.rpartition(".")
        adapted = AdaptedLinear(model.get_submodule(path), row_adapters, pairs)
        setattr(model.get_submodule(parent), child, adapted)
    return row_adapters
