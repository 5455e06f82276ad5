"""The pages themselves: one tensor of keys and one of values for each layer."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class KVLayout:
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    page_tokens: int

    def pool(self, num_pages: int) -> "KVPool":
        return KVPool(self, num_pages)


class KVPool:
    """Owns the memory of so many pages, and of one more, ``spare``, that no row ever has: rows that only
    fill up a batch write there, and what lies beyond a row's pages reads as that one."""

    def __init__(self, layout: KVLayout, num_pages: int) -> None:
        self.layout = layout
        self.spare = num_pages
        page = (layout.page_tokens, layout.num_kv_heads, layout.head_dim)
        # Zeros: a masked place still takes part in a product, where 0 * NaN would be NaN.
        self._all = _zeros((layout.num_layers, 2, num_pages + 1, *page), layout)
        self._layers = [(layer[0], layer[1]) for layer in self._all]

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one layer, each ``[pages, page_tokens, kv_heads, head_dim]``."""
        return self._layers[index]

    def copy(self, source: int, target: int) -> None:
        self._all[:, :, target] = self._all[:, :, source]

    def zero(self, page: int) -> None:
        self._all[:, :, page].zero_()


def _zeros(shape: tuple[int, ...], layout: KVLayout) -> torch.Tensor:
    if layout.device.type != "cpu":
        return torch.zeros(shape, dtype=layout.dtype, device=layout.device)
    # The system gives memory to numpy's zeros when they are first written; torch would take it all now.
    count = int(np.prod(shape)) * layout.dtype.itemsize
    return torch.from_numpy(np.zeros(count, dtype=np.uint8)).view(layout.dtype).view(shape)
