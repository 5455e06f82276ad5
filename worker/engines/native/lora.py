"""LoRA adapters, laid out once beside the packed products."""

import ctypes
from collections.abc import Callable, Mapping, Sequence

import torch

from worker.engines.adapters.reading import Adapter, Pair
from worker.engines.native import structs
from worker.engines.native.panels import PANEL, panels

_HALF = PANEL // 2
_LANES = 16


class LoraPacker:
    """``adapters`` by name, their matrices stored as ``stored``. ``keep`` copies a tensor to memory of its
    own and returns the address; the arrays of structs are kept here."""

    def __init__(
        self,
        adapters: Mapping[str, Adapter],
        stored: torch.dtype,
        keep: Callable[[torch.Tensor], int],
    ) -> None:
        self.numbers = {name: number for number, name in enumerate(adapters)}
        self.most_columns = 0
        self._adapters = list(adapters.values())
        self._stored = stored
        self._together = 4 // stored.itemsize
        self._keep = keep
        self._arrays: list[ctypes.Array[structs.Lora]] = []

    def beside(
        self,
        layers: Mapping[str, int],
        *,
        order: torch.Tensor | None = None,
        input_factors: torch.Tensor | None = None,
    ) -> ctypes.Array[structs.Lora] | None:
        """All adapters of a product whose outputs come from ``layers``: their paths, and how many each has.

        ``order``: the product's outputs, as places among those of the layers one after another; 32 that lie
        together are of one layer. ``input_factors`` are what the input was divided by. None where no
        adapter has any of the layers.
        """
        if not any(path in adapter for adapter in self._adapters for path in layers):
            return None
        array = (structs.Lora * len(self._adapters))()
        for lora, adapter in zip(array, self._adapters, strict=True):
            found = [adapter.get(path) for path in layers]
            if any(found):
                self._fill(lora, found, list(layers.values()), order, input_factors)
        self._arrays.append(array)
        return array

    def _fill(
        self,
        lora: structs.Lora,
        pairs: Sequence[Pair | None],
        outputs: Sequence[int],
        order: torch.Tensor | None,
        input_factors: torch.Tensor | None,
    ) -> None:
        ranks = [0 if pair is None else _up(pair.a.shape[0], self._together) for pair in pairs]
        firsts = [sum(ranks[:i]) for i in range(len(ranks))]
        columns, most = _up(sum(ranks), _LANES), max(ranks)
        inputs = next(pair.a.shape[1] for pair in pairs if pair is not None)
        a, b = torch.zeros(columns, inputs), torch.zeros(sum(outputs), most)
        scale = torch.zeros(columns)
        row = 0
        for pair, first, count in zip(pairs, firsts, outputs, strict=True):
            if pair is not None:
                rank = pair.a.shape[0]
                a[first : first + rank] = pair.a
                b[row : row + count, :rank] = pair.b
                scale[first : first + rank] = pair.scale
            row += count
        layer_of = torch.arange(len(outputs)).repeat_interleave(torch.tensor(outputs))
        if order is not None:
            b, layer_of = b[order], layer_of[order]
        if input_factors is not None:
            a *= input_factors
        layers = layer_of[::_HALF]
        layers = torch.cat((layers, layers[len(layers) - len(layers) % 2 :]))  # of whole panels
        lora.a = self._keep(_side_by_side(a.to(self._stored), self._together))
        lora.b = self._keep(panels(b.to(self._stored), self._together))
        lora.scale = self._keep(scale)
        lora.first = self._keep(torch.tensor(firsts, dtype=torch.int32)[layers])
        steps = [rank // self._together for rank in ranks]
        lora.steps = self._keep(torch.tensor(steps, dtype=torch.int32)[layers])
        lora.columns, lora.most_steps = columns, most // self._together
        self.most_columns = max(self.most_columns, columns)


def _side_by_side(a: torch.Tensor, together: int) -> torch.Tensor:
    """From [columns, k] to [k / together, columns, together]."""
    return a.view(len(a), -1, together).transpose(0, 1)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
