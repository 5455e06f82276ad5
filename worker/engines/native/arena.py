"""Memory for weights, which the kernels read from one end to the other at each step."""

import math

import numpy as np
import torch

_BLOCK_BYTES = 64 << 20
_ALIGNED_BYTES = 64  # a cache line


class Arena:
    """Tensors side by side in large blocks: numpy asks the system to put those on large pages, whose
    addresses the processor need not look up every 4 KiB."""

    def __init__(self) -> None:
        self._rest = np.empty(0, dtype=np.uint8)

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor's numbers in memory that lives as long as the copy."""
        size = math.ceil(tensor.nbytes / _ALIGNED_BYTES) * _ALIGNED_BYTES
        if size > len(self._rest):
            self._rest = np.empty(max(size, _BLOCK_BYTES) + _ALIGNED_BYTES, dtype=np.uint8)
            self._rest = self._rest[-self._rest.ctypes.data % _ALIGNED_BYTES :]
        place, self._rest = self._rest[: tensor.nbytes], self._rest[size:]
        copy = torch.from_numpy(place).view(tensor.dtype).view(tensor.shape)
        return copy.copy_(tensor)
