"""The compiled kernels together with a model packed for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from worker.engines.adapters.reading import Adapter
from worker.engines.native.byte_pool import BytePool
from worker.engines.native.library import Library
from worker.engines.native.weights import NativeModel, Weights
from worker.engines.paging.pages import PAGE_TOKENS


@dataclass(frozen=True, slots=True)
class NativeKernels:
    model: NativeModel
    library: Library
    weights: Weights

    @classmethod
    def load(
        cls,
        model: Any,
        windows: Sequence[int | None],
        library: Library,
        *,
        context_tokens: int,
        weights: Weights,
        calibration: Sequence[int],
        adapters: Mapping[str, Adapter],
    ) -> "NativeKernels":
        """``calibration`` is text as the model's tokens, for int8.

        Raises NotNativeError where the kernels cannot compute this model."""
        assert library.float32 == (weights == "float32")
        with torch.inference_mode():
            packed = NativeModel(model, windows, context_tokens, weights, calibration, adapters)
        return cls(packed, library, weights)

    def pool(self, num_pages: int) -> BytePool:
        m = self.model
        each = self.library.stored_bytes
        return BytePool(
            2 * each * PAGE_TOKENS * m.num_layers * m.num_kv_heads * m.head_dim, num_pages
        )
