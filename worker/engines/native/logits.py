"""Where the kernels put logits."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from worker.engines.sampling.sampling import needs_logits
from worker.engines.scheduling.row import Row


class LogitsBuffer:
    """Owns memory that each pass uses again: mapping tens of megabytes anew would take longer than
    filling them. Parts that are never written take no memory."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._memory: npt.NDArray[np.float32] = np.empty((0, vocab_size), dtype=np.float32)

    def places(
        self, rows: Sequence[Row], *, every: bool
    ) -> tuple[torch.Tensor | None, npt.NDArray[np.uint64]]:
        """``[rows, vocab]`` logits to be filled, and the address of each row's: 0 for a row that does
        not need them, unless ``every`` row's are wanted. None where no row's are."""
        wanted = np.array([every or needs_logits(row) for row in rows])
        if not wanted.any():
            return None, np.zeros(len(rows), dtype=np.uint64)
        if len(self._memory) < len(rows):
            self._memory = np.empty((len(rows), self._vocab_size), dtype=np.float32)
        row_bytes = self._memory.strides[0]
        addresses = self._memory.ctypes.data + np.arange(len(rows), dtype=np.uint64) * row_bytes
        return torch.from_numpy(self._memory[: len(rows)]), addresses * wanted

    def clear(self) -> None:
        self._memory = np.empty((0, self._vocab_size), dtype=np.float32)
