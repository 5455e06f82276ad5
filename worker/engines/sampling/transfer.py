"""Copies from the host to the device without waiting for them."""

from collections.abc import Sequence
from typing import Any

import torch


def to_device(
    values: Sequence[Any], device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """A tensor of these numbers on the device.

    For CUDA by way of pinned memory, from which the copy runs asynchronously; torch keeps that
    memory until the copy is done.
    """
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
