"""Chooses next tokens in the compiled kernels, where the logits lie."""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch

from worker.engines.native import structs
from worker.engines.native.library import Library
from worker.engines.sampling.sampling import exponent_scale, uniforms
from worker.engines.scheduling.row import Row


class NativeSampler:
    """A `Sampler` for float32 logits on the CPU: one pass, in which each thread takes some rows."""

    def __init__(self, library: Library) -> None:
        self._sample = library.functions.millpond_sample
        self._scratch = np.empty(0, dtype=np.float32)

    def __call__(
        self, logits: torch.Tensor, places: Sequence[int], rows: Sequence[Row]
    ) -> list[int | None]:
        assert logits.dtype is torch.float32
        assert logits.is_contiguous()
        vocab_size, threads = logits.shape[-1], torch.get_num_threads()
        if self._scratch.size < threads * vocab_size:
            self._scratch = np.empty(threads * vocab_size, dtype=np.float32)
        draws = (structs.Draw * len(rows))()
        tokens = np.empty(len(rows), dtype=np.int32)
        row_bytes = vocab_size * logits.itemsize
        numbers = uniforms([r.sampling.seed for r in rows], [len(r.token_ids) for r in rows])
        arrays = [
            _fill(draw, row, logits.data_ptr() + place * row_bytes, number)
            for draw, row, place, number in zip(draws, rows, places, numbers.tolist(), strict=True)
        ]
        batch = structs.DrawBatch(
            threads=threads,
            rows=len(rows),
            vocab=vocab_size,
            draw=draws,
            scratch=self._scratch.ctypes.data,
            tokens=tokens.ctypes.data,
        )
        self._sample(ctypes.byref(batch))
        del arrays
        return [None if token < 0 else token for token in tokens.tolist()]


def _fill(draw: structs.Draw, row: Row, logits: int, uniform: float) -> list[object]:
    """Describe the row's draw; the arrays that it points to live as long as what is returned."""
    sampling = row.sampling
    draw.logits, draw.uniform = logits, uniform
    draw.top_k, draw.top_p, draw.min_p = sampling.top_k, sampling.top_p, sampling.min_p
    draw.scale = exponent_scale(sampling) if sampling.temperature > 0 else 0.0
    arrays: list[object] = []
    if row.counts is not None:
        draw.seen, draw.num_seen = row.counts.token_ids.buffer_info()
        draw.counts, _ = row.counts.counts.buffer_info()
        draw.repetition_penalty = sampling.repetition_penalty
        draw.presence_penalty = sampling.presence_penalty
        draw.frequency_penalty = sampling.frequency_penalty
    if sampling.logit_bias:
        token_ids, biases = zip(*sampling.logit_bias, strict=True)
        biased, bias = np.array(token_ids, dtype=np.int32), np.array(biases, dtype=np.float32)
        draw.biased, draw.bias = biased.ctypes.data, bias.ctypes.data
        draw.num_biased = len(biased)
        arrays += (biased, bias)
    if row.suppressed_token_ids:
        banned = np.array(list(row.suppressed_token_ids), dtype=np.int32)
        draw.banned, draw.num_banned = banned.ctypes.data, len(banned)
        arrays.append(banned)
    if row.matcher is not None:
        draw.allowed, _ = row.matcher.mask.buffer_info()
    return arrays
