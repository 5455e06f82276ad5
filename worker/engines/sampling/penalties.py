"""Each row's own changes to its logits, before any filter: biases and penalties.

Only the tokens that a row names or has seen are touched, so rows without any cost nothing. The order
is that of transformers (SequenceBias, RepetitionPenalty); presence and frequency follow, as OpenAI
defines them.
"""

from collections.abc import Sequence

import numpy as np
import torch

from worker.engines.sampling.transfer import array_to_device, to_device
from worker.engines.scheduling.row import Row


def adjust(logits: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """``[rows, vocab]`` logits with the rows' biases and penalties.

    As they came when no row has any; else float32, changed in place if they were that before.
    """
    if not any(row.adjusts_logits for row in rows):
        return logits
    logits = logits.float()
    _add_biases(logits, rows)
    _penalize(logits, rows)
    return logits


def _add_biases(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    pairs = [(i, *bias) for i, row in enumerate(rows) for bias in row.sampling.logit_bias]
    if not pairs:
        return
    at, token_ids, biases = zip(*pairs, strict=True)
    where = to_device((at, token_ids), logits.device)
    logits[where[0], where[1]] += to_device(biases, logits.device)


def _penalize(logits: torch.Tensor, rows: Sequence[Row]) -> None:
    counted = [
        (i, row.counts, row.sampling) for i, row in enumerate(rows) if row.counts is not None
    ]
    if not counted:
        return
    sizes = [len(counts.token_ids) for _, counts, _ in counted]
    token_ids = np.concatenate([np.array(c.token_ids) for _, c, _ in counted])
    counts = np.concatenate([np.array(c.counts) for _, c, _ in counted])
    factors = np.array(
        [(s.repetition_penalty, s.presence_penalty, s.frequency_penalty) for _, _, s in counted],
        dtype=np.float32,
    )
    repetition, presence, frequency = np.repeat(factors, sizes, axis=0).T
    off = presence * (counts > 0) + frequency * counts
    where = np.stack((np.repeat([i for i, _, _ in counted], sizes), token_ids))
    row, column = array_to_device(where, logits.device)
    by, less = array_to_device(np.stack((repetition, off)).astype(np.float32), logits.device)
    seen = logits[row, column]
    logits[row, column] = torch.where(seen < 0, seen * by, seen / by) - less
