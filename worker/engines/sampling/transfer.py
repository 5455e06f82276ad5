"""Copies from the host to the device without waiting for them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
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


def array_to_device(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """The same for an array; on the CPU they share memory."""
    host = torch.from_numpy(values)
    return host if device.type != "cuda" else host.pin_memory().to(device, non_blocking=True)
