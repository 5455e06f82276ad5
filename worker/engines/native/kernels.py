"""The compiled kernels together with a model packed for them."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worker.engines.native.library import NoKernelsError, load_library
from worker.engines.native.pages import PAGE_TOKENS
from worker.engines.native.weights import (
    NativeModel,
    NotNativeError,
    Weights,
    check_native,
)

__all__ = ["NativeKernels", "NotNativeError"]


@dataclass(frozen=True, slots=True)
class NativeKernels:
    model: NativeModel
    library: ctypes.CDLL
    weights: Weights

    @classmethod
    def load(
        cls,
        model: Any,
        windows: Sequence[int | None],
        *,
        context_tokens: int,
        weights: Weights,
        calibration: Sequence[int],
        cache_dir: Path,
    ) -> "NativeKernels":
        """``calibration`` is text as the model's tokens, for int8.

        Raises NotNativeError where the kernels cannot compute this model on this machine."""
        check_native(model.config, windows)
        try:
            library = load_library(cache_dir)
        except NoKernelsError as error:
            raise NotNativeError(str(error)) from error
        with torch.inference_mode():
            packed = NativeModel(model, windows, context_tokens, weights, calibration)
        return cls(packed, library, weights)

    @property
    def instructions(self) -> str:
        """The processor's, that the matrix products use."""
        return "avx512_vnni" if self.weights == "int8" else "avx512_bf16"

    @property
    def page_bytes(self) -> int:
        m = self.model
        return 2 * 2 * PAGE_TOKENS * m.num_layers * m.num_kv_heads * m.head_dim
