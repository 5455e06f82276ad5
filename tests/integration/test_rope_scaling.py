"""Rope that is scaled for long contexts is right past its original length, or it is not served there.

The check at load says so, for it reads rows of this context to its end.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from millpond.errors import UnsupportedModelError
from millpond.models.tokenization import ByteTokenizer
from tests.integration import test_native as tiny
from worker.engines.base import EngineConfig
from worker.engines.model import loading, self_check
from worker.engines.torch.attention import ATTENTION_NAME

ORIGINAL_TOKENS = 64
BASE = {"rope_theta": 10_000.0, "original_max_position_embeddings": ORIGINAL_TOKENS}
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
RIGHT: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", **LLAMA3},
    "yarn": {"rope_type": "yarn", "factor": 4.0},
    "yarn-with-attention-factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3},
}


def model(rope: dict[str, Any]) -> Any:
    torch.manual_seed(7)
    sizes = {"rope_parameters": BASE | rope, "max_position_embeddings": 4 * ORIGINAL_TOKENS}
    return tf.LlamaForCausalLM(tf.LlamaConfig(**tiny.COMMON | sizes))


def load(rope: dict[str, Any], folder: Path) -> loading.LoadedModel:
    model(rope).save_pretrained(folder)
    config = EngineConfig("transformers", folder, tiny.preset(), "float32", slots=4)
    return loading.load(config, ByteTokenizer())


def check(loaded: loading.LoadedModel) -> None:
    self_check.check(loaded, tiny.preset(), ByteTokenizer())


@pytest.mark.parametrize("name", RIGHT)
def test_scaling_is_right_past_the_original_length_and_refused_if_it_is_lost_there(
    name: str, tmp_path: Path
) -> None:
    loaded = load(RIGHT[name], tmp_path)
    assert loaded.native is not None
    assert loaded.context_tokens == 4 * ORIGINAL_TOKENS
    check(loaded)
    plain = load({"rope_type": "default"}, tmp_path / "plain")
    assert plain.native is not None
    tables = zip(loaded.native.model.rotary, plain.native.model.rotary, strict=True)
    with torch.inference_mode():
        for ours, unscaled in tables:
            ours[ORIGINAL_TOKENS:] = unscaled[ORIGINAL_TOKENS:]
    with pytest.raises(UnsupportedModelError, match=r"after (65|127|200|25\d) tokens"):
        check(loaded)


@pytest.mark.parametrize("name", RIGHT)
def test_scaling_is_right_on_torch_and_refused_if_positions_are_wrong(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = loading.adopt(model(RIGHT[name]).eval())
    check(loaded)
    rotary = loaded.model.model.rotary_emb
    forward = rotary.forward

    def wrong(states: torch.Tensor, position_ids: torch.Tensor) -> Any:
        if loaded.model.config._attn_implementation == ATTENTION_NAME:
            position_ids = position_ids.clamp(max=ORIGINAL_TOKENS)
        return forward(states, position_ids)

    monkeypatch.setattr(rotary, "forward", wrong)
    with pytest.raises(UnsupportedModelError, match=r"after (127|200|25\d) tokens"):
        check(loaded)


def test_rope_that_depends_on_the_rows_length_is_served_up_to_the_original(tmp_path: Path) -> None:
    """Dynamic scaling turns a row's old keys again as it grows; so no row grows so far."""
    loaded = load({"rope_type": "dynamic", "factor": 4.0}, tmp_path)
    assert loaded.native is None
    assert loaded.context_tokens == ORIGINAL_TOKENS
    check(loaded)


def test_types_of_rope_that_nobody_has_tried_are_refused() -> None:
    sizes = tiny.COMMON | {"max_position_embeddings": 256}
    config = tf.LlamaConfig(**sizes)
    config.rope_parameters = {"rope_type": "proportional", "rope_theta": 10_000.0}
    with pytest.raises(UnsupportedModelError, match="rope of type proportional"):
        loading.check_config(config)


def test_rope_of_each_type_of_layers_is_looked_at() -> None:
    """Gemma 3 turns its sliding and its full layers in different ways."""
    config = tf.Gemma3TextConfig(max_position_embeddings=4096)
    config.rope_parameters = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        "full_attention": BASE | {"rope_type": "dynamic", "factor": 4.0},
    }
    assert loading.context_limit(config) == ORIGINAL_TOKENS
