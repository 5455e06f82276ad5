"""Attention over a batch's pages, behind transformers' attention interface.

The model's own layers hand their rotated keys and values to `BatchCache.update`, which writes them into
the pages, and their queries to `attend`, which reads them. No mask of transformers' making is involved.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from millpond.errors import UnsupportedModelError
from worker.engines.torch.batch import Batch
from worker.engines.torch.kv_pool import KVPool

ATTENTION_NAME = "millpond"
# What some models ask of attention and this one does not do.
_REFUSED_ARGUMENTS = ("softcap", "s_aux", "sinks", "position_bias", "head_mask")


class Reading(Protocol):
    """How one batch's queries read the pages."""

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        """From ``[tokens, heads, head_dim]`` to the same. Keys and values, ``[tokens, kv_heads, head_dim]``,
        are in the pages too."""


# What makes one for a batch. The windows are each layer's, None for full attention.
Attention = Callable[[Batch, KVPool, Sequence[int | None]], Reading]


class BatchCache(Cache):  # type: ignore[misc]
    """What the model takes for its cache during one forward pass."""

    def __init__(
        self, batch: Batch, pool: KVPool, windows: Sequence[int | None], attention: Attention
    ) -> None:
        super().__init__(layers=[])
        self.windows = windows
        self.reading = attention(batch, pool, windows)
        self._places = batch.places
        self._pool = pool

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write ``[1, kv_heads, tokens, head_dim]`` to the tokens' places; they go on to `attend` as they
        are."""
        for states, pages in zip(
            (key_states, value_states), self._pool.layer(layer_idx), strict=True
        ):
            pages.flatten(0, 1).index_copy_(0, self._places, states[0].transpose(0, 1))
        return key_states, value_states


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    batch: BatchCache,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The function that the model's attention layers call.

    Raises UnsupportedModelError when a layer asks for what is not done here.
    """
    layer: Any = module.layer_idx
    asked = [name for name in _REFUSED_ARGUMENTS if kwargs.get(name) is not None]
    if attention_mask is not None:
        asked.append("attention_mask")
    if sliding_window != batch.windows[layer]:
        asked.append(f"sliding_window={sliding_window}")
    if asked:
        raise UnsupportedModelError(
            f"attention layer {layer} of {type(module).__name__} wants {', '.join(asked)}, "
            "which this engine does not do"
        )
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))
    return batch.reading(layer, queries, keys, values, scaling)[None], None


def register() -> None:
    """Make `attend` known to transformers under `ATTENTION_NAME`; harmless if repeated."""
    AttentionInterface.register(ATTENTION_NAME, attend)
