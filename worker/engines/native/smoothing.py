"""Before int8 quantization: move outliers of a few input channels from activations into weights.

A row of activations shares one scale, so one channel with outliers costs all others their precision. Each
channel is divided by a factor in the norm that produces it, and its weights are multiplied by it, which
changes no product. (After SmoothQuant, Xiao et al., 2022.)

The factors are powers of two of peaks that are measured in float32 on a text that ships with the
engine: so every processor finds the same ones, but for a peak that lies on a boundary to its last bits.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

_CALIBRATION_TOKENS = 768
# The share of the outliers that moves to the weights (SmoothQuant's alpha).
_SHARE = 0.5


class ChannelPeaks:
    """The largest activation of each input channel of each linear layer on ``token_ids``, a text."""

    def __init__(self, model: Any, token_ids: Sequence[int]) -> None:
        self._peaks: dict[int, torch.Tensor] = {}
        longest = min(_CALIBRATION_TOKENS, model.config.max_position_embeddings)
        with self._watching(model), _in_float32(model):
            attention = model.config._attn_implementation
            model.set_attn_implementation("sdpa")
            try:
                model(input_ids=torch.tensor([list(token_ids[:longest])]), use_cache=False)
            finally:
                model.set_attn_implementation(attention)

    def factors(self, linear: torch.nn.Module, *weights: torch.Tensor) -> torch.Tensor:
        """The divisors of the input channels of ``linear``, which all ``weights`` read."""
        peaks = self._peaks[id(linear)].float().clamp(min=1e-5)
        loud = torch.stack([w.float().abs().amax(dim=0) for w in weights]).amax(dim=0)
        factors = peaks**_SHARE / loud.clamp(min=1e-5) ** (1 - _SHARE)
        return factors.clamp(min=1e-3, max=1e3).log2().round().exp2()

    @contextmanager
    def _watching(self, model: Any) -> Iterator[None]:
        hooks = [
            module.register_forward_pre_hook(self._note)
            for module in model.modules()
            if isinstance(module, torch.nn.Linear)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note(self, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._peaks[id(module)] = inputs[0].detach().abs().flatten(0, -2).amax(dim=0)


@contextmanager
def _in_float32(model: Any) -> Iterator[None]:
    """Compute in float32, with the weights of one part at a time in it: all would take twice the
    memory."""
    parts = [model.model.embed_tokens, *model.model.layers, model.model.norm, model.lm_head]
    dtype = model.dtype
    hooks = []
    for part in parts:
        hooks.append(part.register_forward_pre_hook(lambda module, _: module.float() and None))
        hooks.append(part.register_forward_hook(lambda module, *_: module.to(dtype) and None))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
