"""Float32, greedy: token for token what transformers' generate gives for that prompt alone."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as tf

from millpond.errors import UnsupportedModelError
from millpond.messages import FinishReason
from millpond.models.presets import Preset
from millpond.models.tokenization import ByteTokenizer
from worker.engines.base import EngineConfig, Finished, GenerationRequest, Sampling
from worker.engines.model import self_check
from worker.engines.model.engine import TransformersEngine
from worker.engines.model.loading import adopt, check_config
from worker.engines.paging.pages import PAGE_TOKENS
from worker.engines.torch import gathered
from worker.engines.torch.linear import PackedLinear, pack_linears

CONTEXT_TOKENS = 512
PRESET = Preset(name="tiny", source="", context_tokens=CONTEXT_TOKENS)
COMMON = {
    "vocab_size": ByteTokenizer.vocab_size,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT_TOKENS,
    "initializer_range": 0.25,
    "bos_token_id": None,
    "pad_token_id": 0,
    "eos_token_id": ByteTokenizer.EOS,
}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**COMMON)),
    "llama-mha": lambda: tf.LlamaForCausalLM(
        tf.LlamaConfig(**COMMON | {"num_key_value_heads": 6, "attention_bias": True})
    ),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**COMMON)),
    "qwen2-windows": lambda: tf.Qwen2ForCausalLM(
        tf.Qwen2Config(**COMMON, use_sliding_window=True, sliding_window=20, max_window_layers=1)
    ),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**COMMON, head_dim=16)),
    "gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**COMMON, head_dim=8)),
    "gemma3": lambda: tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(
            **COMMON,
            head_dim=8,
            sliding_window=16,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            query_pre_attn_scalar=24,
            final_logit_softcapping=9.0,
        )
    ),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**COMMON, sliding_window=24)),
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**COMMON, sliding_window=None)),
    "granite": lambda: tf.GraniteForCausalLM(
        tf.GraniteConfig(**COMMON, logits_scaling=3.0, attention_multiplier=0.3)
    ),
}


def build_model(family: str) -> Any:
    torch.manual_seed(11)
    return FAMILIES[family]().eval()


def generate_alone(model: Any, prompt: list[int], max_tokens: int) -> list[int]:
    model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
        )
    return [int(t) for t in out[0, len(prompt) :]]


def build_engine(
    model: Any, slots: int, kv_tokens: int | None = None, *, max_batched_tokens: int = 512
) -> TransformersEngine:
    config = EngineConfig(
        "transformers",
        None,
        PRESET,
        slots=slots,
        kv_tokens=kv_tokens or slots * CONTEXT_TOKENS,
        max_batched_tokens=max_batched_tokens,
    )
    return TransformersEngine(adopt(model), config, ByteTokenizer())


def needs(row: tuple[list[int], int]) -> int:
    return len(row[0]) + row[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_rows_equal_generate_alone_in_any_company(family: str) -> None:
    rng = random.Random(family)
    model = build_model(family)
    rows = {
        f"r{i}": ([rng.randrange(256) for _ in range(length)], rng.randint(1, 40))
        for i, length in enumerate(
            [1, 2, 127, 128, 129, 200, *(rng.randint(1, 90) for _ in range(14))]
        )
    }
    expected = {i: generate_alone(model, prompt, n) for i, (prompt, n) in rows.items()}
    engine = build_engine(model, slots=7, kv_tokens=900)
    cancelled = set(rng.sample(sorted(rows), 3))
    waiting = list(rows)
    rng.shuffle(waiting)
    finished: dict[str, Finished] = {}
    while waiting or engine.num_rows:
        free = engine.capacity()
        wanted = rng.randint(0, free.free_slots)
        room = free.free_tokens
        group: list[str] = []
        while waiting and len(group) < wanted and room >= needs(rows[waiting[0]]):
            room -= needs(rows[waiting[0]])
            group.append(waiting.pop(0))
        requests = [
            GenerationRequest(i, rows[i][0], Sampling(max_tokens=rows[i][1], seed=0)) for i in group
        ]
        if requests:
            assert engine.admit(requests) == []
        assert engine._cache.allocated_tokens <= 900 + 7 * PAGE_TOKENS
        if rng.random() < 0.1:
            engine.cancel(sorted(cancelled))
        finished.update({e.id: e for e in engine.step() if isinstance(e, Finished)})
    assert set(finished) == set(rows)
    for row_id, end in finished.items():
        if end.reason is FinishReason.CANCELLED:
            assert row_id in cancelled
            assert list(end.token_ids) == expected[row_id][: len(end.token_ids)]
        else:
            assert list(end.token_ids) == expected[row_id], row_id


def test_rows_that_grow_into_further_pages_stay_exact() -> None:
    model = build_model("llama")
    rng = random.Random(3)
    prompts = {f"r{i}": [rng.randrange(256) for _ in range(120 + i)] for i in range(6)}
    engine = build_engine(model, slots=6)
    engine.admit(
        [
            GenerationRequest(i, p, Sampling(max_tokens=90, seed=0, ignore_eos=True))
            for i, p in prompts.items()
        ]
    )
    finished: dict[str, Finished] = {}
    while engine.num_rows:
        finished.update({e.id: e for e in engine.step() if isinstance(e, Finished)})
    model.generation_config.eos_token_id = None
    for row_id, prompt in prompts.items():
        assert list(finished[row_id].token_ids) == generate_alone(model, prompt, 90)


def test_a_row_with_logits_that_are_not_finite_ends_alone() -> None:
    model = build_model("llama")
    poison, healthy = 77, [1, 2, 3]
    expected = generate_alone(model, healthy, 5)
    with torch.no_grad():
        model.model.embed_tokens.weight[poison] = float("nan")
    engine = build_engine(model, slots=3)
    sampling = Sampling(max_tokens=5, seed=0)
    engine.admit(
        [
            GenerationRequest("bad", [poison] * 9, sampling),
            GenerationRequest("good", healthy, sampling),
        ]
    )
    finished: dict[str, Finished] = {}
    finished.update({e.id: e for e in engine.step() if isinstance(e, Finished)})
    assert finished["bad"].reason is FinishReason.ERROR
    assert "not finite" in (finished["bad"].error or "")
    # The next rows lie where the bad one lay; a longer one makes them read past their own ends.
    long = [5] * 30
    engine.admit(
        [GenerationRequest("next", healthy, sampling), GenerationRequest("long", long, sampling)]
    )
    while engine.num_rows:
        finished.update({e.id: e for e in engine.step() if isinstance(e, Finished)})
    assert list(finished["good"].token_ids) == expected
    assert list(finished["next"].token_ids) == expected
    assert list(finished["long"].token_ids) == generate_alone(model, long, 5)


class _OutOfMemory:
    """Fails the calls of a function whose numbers, from 1, are given, as torch on CUDA does."""

    def __init__(self, function: Callable[..., Any], failing: set[int]) -> None:
        self._function = function
        self._failing = failing
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls in self._failing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._function(*args, **kwargs)


@pytest.mark.parametrize("failing", [{1}, {1, 2}, {1, 2, 3}, {3}, {8}, {8, 9, 10}, {4, 7, 9, 12}])
def test_out_of_memory_splits_or_postpones_and_changes_no_token(failing: set[int]) -> None:
    model = build_model("llama")
    prompts = {f"r{i}": [i + 1] * (i + 2) for i in range(4)}
    expected = {i: generate_alone(model, p, 9) for i, p in prompts.items()}
    engine = build_engine(model, slots=4)
    runner = engine._runner
    runner._forward = _OutOfMemory(runner._forward, failing)  # type: ignore[method-assign]
    engine.admit(
        [GenerationRequest(i, p, Sampling(max_tokens=9, seed=0)) for i, p in prompts.items()]
    )
    finished: dict[str, Finished] = {}
    while engine.num_rows:
        finished.update({e.id: e for e in engine.step() if isinstance(e, Finished)})
    for row_id, end in finished.items():
        if failing == {1, 2, 3} and end.reason is FinishReason.ERROR:
            assert "out of memory" in (end.error or "")
            continue
        assert list(end.token_ids) == expected[row_id]
    assert engine.capacity().free_slots == 4


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (lambda: tf.Gemma2Config(), "attn_logit_softcapping"),
        (lambda: tf.T5Config(), "is_encoder_decoder"),
        (lambda: tf.Llama4TextConfig(), "chunk"),
        (lambda: tf.Gemma3Config(), "only text models"),
    ],
)
def test_attention_of_another_kind_is_refused(config: Callable[[], Any], complaint: str) -> None:
    with pytest.raises(UnsupportedModelError, match=complaint):
        check_config(config())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_self_check_passes_what_is_served(family: str) -> None:
    self_check.check(adopt(build_model(family)), PRESET, ByteTokenizer())


def test_the_self_check_refuses_attention_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = adopt(build_model("llama"))
    original = gathered._Rows.attend

    def wrong(self: Any, *args: Any) -> torch.Tensor:
        return original(self, *args) * 1.2

    monkeypatch.setattr(gathered._Rows, "attend", wrong)
    with pytest.raises(UnsupportedModelError, match="in decode"):
        self_check.check(loaded, PRESET, ByteTokenizer())


def test_a_window_that_the_layers_do_not_share_is_refused() -> None:
    loaded = replace(adopt(build_model("mistral")), windows=(None,) * 3)
    with pytest.raises(UnsupportedModelError, match="sliding_window"):
        self_check.check(loaded, PRESET, ByteTokenizer())


@pytest.mark.parametrize("family", ["llama-mha", "phi3"])
def test_packed_weights_give_the_same_products(family: str) -> None:
    model = build_model(family).to(torch.bfloat16)
    ids = torch.arange(2 * 7).view(2, 7)
    with torch.inference_mode():
        plain = model(ids).logits.float()
        assert pack_linears(model) > 0
        assert any(isinstance(m, PackedLinear) for m in model.modules())
        torch.testing.assert_close(model(ids).logits.float(), plain, atol=0.1, rtol=0.05)
