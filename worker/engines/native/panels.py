"""How a packed matrix lies in memory, as csrc/model.h says."""

import torch

PANEL = 64


def pad(tensor: torch.Tensor) -> torch.Tensor:
    """Zeros up to the next multiple of a panel in the first dimension."""
    missing = -tensor.shape[0] % PANEL
    return torch.cat((tensor, tensor.new_zeros((missing, *tensor.shape[1:]))))


def panels(weight: torch.Tensor, together: int) -> torch.Tensor:
    """From [n, k] to panels of 64 outputs: [n / 64, k / together, 64, together]."""
    padded = pad(weight)
    n, k = padded.shape
    return padded.view(n // PANEL, PANEL, k // together, together).permute(0, 2, 1, 3).contiguous()
