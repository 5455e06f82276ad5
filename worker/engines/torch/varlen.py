"""Attention by torch's flash kernel, which reads the pages where they lie."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch

from worker.engines.torch.attention import Attention
from worker.engines.torch.batch import Batch
from worker.engines.torch.kv_pool import KVPool

_MOST_HEAD_DIM = 256


class Kernel(Protocol):
    """`torch.nn.attention.varlen.varlen_attn`, or what stands in for it."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor | None,
        max_q: int,
        max_k: int,
        *,
        scale: float | None,
        window_size: tuple[int, int],
        enable_gqa: bool,
        seqused_k: torch.Tensor,
        block_table: torch.Tensor,
        num_splits: int,
    ) -> torch.Tensor: ...


class VarlenReading:
    """One call for each layer, whatever the rows. Nothing of it depends on what the host alone knows, so
    it can be captured."""

    def __init__(
        self, kernel: Kernel, batch: Batch, pool: KVPool, windows: Sequence[int | None]
    ) -> None:
        self._kernel = kernel
        self._batch = batch
        self._pool = pool
        self._windows = windows

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scale: float | None,
    ) -> torch.Tensor:
        batch, shape = self._batch, self._batch.shape
        keys, values = self._pool.layer(layer)
        return self._kernel(
            query,
            keys,
            values,
            batch.starts,
            batch.key_starts,
            shape.most_queries,
            shape.most_keys,
            scale=scale,
            window_size=self._window(layer),
            enable_gqa=query.shape[1] != keys.shape[2],
            seqused_k=batch.lengths,
            block_table=batch.table,
            # With more, a row's sums would depend on the longest row beside it.
            num_splits=1,
        )

    def _window(self, layer: int) -> tuple[int, int]:
        """How many places before and after its own a query sees; -1 for all."""
        window = self._windows[layer]
        if window is not None:
            return window - 1, 0
        # One query alone sees everything, and the kernel folds heads that share keys only if told so.
        return (-1, -1) if self._batch.shape.most_queries == 1 else (-1, 0)


def varlen_attention(kernel: Kernel) -> Attention:
    return partial(VarlenReading, kernel)


def find_kernel(head_dim: int, dtype: torch.dtype, device: torch.device) -> Kernel | None:
    """torch's own, where it computes this: on CUDA from Ampere on, in half precision."""
    if device.type != "cuda" or torch.version.hip is not None or dtype.itemsize != 2:
        return None
    major, _ = torch.cuda.get_device_capability(device)
    if major < 8 or head_dim % 8 or head_dim > _MOST_HEAD_DIM:
        return None
    if not torch.backends.cuda.is_flash_attention_available():
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    kernel: Any = varlen_attn
    return kernel if "block_table" in (kernel.__kwdefaults__ or ()) else None
