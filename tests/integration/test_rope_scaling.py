"""Rope that is scaled for long contexts is right past its original length, or it is not served there."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from millpond.models.tokenization import ByteTokenizer
from tests.integration import test_native as tiny
from worker.engines.base import EngineConfig
from worker.engines.model import loading, self_check
from worker.engines.model.backend import build_backend, prefill
from worker.engines.scheduling.row import Row

ORIGINAL_TOKENS = 64
BASE = {"rope_theta": 10_000.0, "original_max_position_embeddings": ORIGINAL_TOKENS}
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
RIGHT: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
    "yarn-with-attention-factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3},
}


def load(rope: dict[str, Any], folder: Path) -> loading.LoadedModel:
    torch.manual_seed(7)
    sizes = {"rope_parameters": BASE | rope, "max_position_embeddings": 4 * ORIGINAL_TOKENS}
    tf.LlamaForCausalLM(tf.LlamaConfig(**tiny.COMMON | sizes)).save_pretrained(folder)
    config = EngineConfig("transformers", folder, tiny.preset(), "float32", slots=4)
    return loading.load(config, ByteTokenizer())


@torch.inference_mode()
def agreement(loaded: loading.LoadedModel, num_tokens: int) -> float:
    """Least cosine with transformers' logits, over rows up to so many tokens."""
    tokens = [(37 * i + i // 5) % 256 for i in range(num_tokens)]
    ends = sorted({num_tokens, num_tokens - 1, num_tokens // 2})
    rows = [Row(tiny.request(f"{n}", tokens[:n], 1), ByteTokenizer()) for n in ends]
    cache, runner = build_backend(loaded, kv_tokens=2000, slots=len(rows))
    cache.allocate(rows)
    ours = prefill(runner, rows, logits=True, chunk_tokens=50).logits
    theirs = self_check._reference(loaded, tokens, ends)
    assert ours is not None
    wanted = torch.stack([theirs[n] for n in ends])
    return float(torch.cosine_similarity(ours.double(), wanted.double()).min())


@pytest.mark.parametrize("name", RIGHT)
def test_the_kernels_are_right_past_the_original_length(name: str, tmp_path: Path) -> None:
    loaded = load(RIGHT[name], tmp_path)
    assert loaded.native is not None
    assert loaded.context_tokens == 4 * ORIGINAL_TOKENS
    assert agreement(loaded, 4 * ORIGINAL_TOKENS) > 0.99999


def test_rope_that_depends_on_the_rows_length_is_served_up_to_the_original(tmp_path: Path) -> None:
    """Dynamic scaling turns a row's old keys again as it grows; so no row grows so far."""
    loaded = load({"rope_type": "dynamic", "factor": 4.0}, tmp_path)
    assert loaded.native is None
    assert loaded.context_tokens == ORIGINAL_TOKENS
    assert agreement(loaded, ORIGINAL_TOKENS) > 0.99999


@torch.inference_mode()
def test_scaling_that_is_lost_would_be_seen(tmp_path: Path) -> None:
    loaded = load(RIGHT["yarn"], tmp_path)
    assert loaded.native is not None
    plain = load({"rope_type": "default"}, tmp_path / "plain")
    assert plain.native is not None
    tables = [[t for t in m.native.model._kept if t.shape == (256, 16)] for m in (loaded, plain)]  # type: ignore[union-attr]
    for ours, theirs in zip(*tables, strict=True):
        ours.copy_(theirs)
    assert agreement(loaded, 4 * ORIGINAL_TOKENS) < 0.99
