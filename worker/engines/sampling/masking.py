"""The tokens that constraints forbid: their logits become -inf."""

from collections.abc import Sequence

import numpy as np
import torch

from worker.engines.sampling.transfer import array_to_device, to_device
from worker.engines.scheduling.row import Row


def forbid(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    """Mask ``[rows, vocab]`` logits in place, those of constrained rows only."""
    masks = [(i, row.matcher.mask) for i, row in enumerate(rows) if row.matcher is not None]
    if not masks:
        return
    words = np.stack([np.frombuffer(mask, dtype=np.uint8) for _, mask in masks])
    bits = np.unpackbits(words, axis=-1, bitorder="little")
    allowed = array_to_device(bits[:, : logits.shape[-1]], logits.device).bool()
    at = to_device([i for i, _ in masks], logits.device)
    logits[at] = logits[at].masked_fill(~allowed, -torch.inf)
