"""The compiled kernels: they agree with transformers, and a row's bits never depend on company."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from millpond.messages import FinishReason
from millpond.models.presets import Preset
from millpond.models.prompts import shared_prefix
from millpond.models.tokenization import ByteTokenizer
from tests.conftest import skip_or_fail
from worker.engines.base import EngineConfig, Finished, GenerationRequest, Sampling
from worker.engines.model import loading, self_check
from worker.engines.model.backend import prefill
from worker.engines.model.engine import TransformersEngine
from worker.engines.native import compiling
from worker.engines.native.byte_pool import BytePool
from worker.engines.native.compiling import NoKernelsError
from worker.engines.native.library import load_library
from worker.engines.native.runner import NativeRunner
from worker.engines.paging.pages import PAGE_TOKENS, PagedCache
from worker.engines.scheduling.prefill import Chunk
from worker.engines.scheduling.row import Row

CONTEXT_TOKENS = 512
COMMON = {
    "vocab_size": ByteTokenizer.vocab_size,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT_TOKENS,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "pad_token_id": 0,
    "eos_token_id": ByteTokenizer.EOS,
}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**COMMON)),
    "llama-mha-bias": lambda: tf.LlamaForCausalLM(
        tf.LlamaConfig(**COMMON | {"num_key_value_heads": 6, "attention_bias": True})
    ),
    "llama-wide-heads": lambda: tf.LlamaForCausalLM(
        tf.LlamaConfig(**COMMON | {"num_attention_heads": 2, "head_dim": 96})
    ),
    "llama-one-kv-head": lambda: tf.LlamaForCausalLM(
        tf.LlamaConfig(**COMMON | {"num_attention_heads": 8, "num_key_value_heads": 1})
    ),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**COMMON)),
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**COMMON)),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**COMMON, sliding_window=24)),
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**COMMON, sliding_window=None)),
}


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    try:
        load_library(CACHE)
    except NoKernelsError as error:
        skip_or_fail(str(error))


CACHE = EngineConfig("", None, Preset(name="", source="", context_tokens=1), slots=1).cache_dir


def preset(system_prompt: str = "") -> Preset:
    return Preset(
        name="tiny", source="", context_tokens=CONTEXT_TOKENS, system_prompt=system_prompt
    )


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., loading.LoadedModel]:
    """Save a random model of the family as a folder and load it as the engine does."""
    folders: dict[str, Path] = {}

    def load(family: str, **config: Any) -> loading.LoadedModel:
        if family not in folders:
            torch.manual_seed(11)
            folders[family] = tmp_path_factory.mktemp(family)
            model = FAMILIES[family]().to(torch.bfloat16)
            for name, weight in model.named_parameters():
                if name.endswith("bias"):  # they start as zeros
                    torch.nn.init.normal_(weight, std=0.5)
            model.save_pretrained(folders[family])
        values = {"dtype": "bfloat16", "slots": 7, **config}
        loaded = loading.load(
            EngineConfig("transformers", folders[family], preset(), **values), ByteTokenizer()
        )
        assert loaded.native is not None
        return loaded

    return load


def engine_of(
    loaded: loading.LoadedModel, slots: int = 7, system_prompt: str = "", **options: Any
) -> TransformersEngine:
    config = EngineConfig(
        *("transformers", None, preset(system_prompt)),
        **{"slots": slots, "kv_tokens": slots * CONTEXT_TOKENS, **options},
    )
    return TransformersEngine(loaded, config, ByteTokenizer())


def request(row_id: str, prompt: list[int], max_tokens: int, **sampling: Any) -> GenerationRequest:
    return GenerationRequest(
        row_id,
        prompt,
        Sampling(max_tokens=max_tokens, **{"seed": 5, "ignore_eos": True} | sampling),
    )


def drain(engine: TransformersEngine) -> dict[str, Finished]:
    finished: dict[str, Finished] = {}
    while engine.num_rows:
        finished.update({e.id: e for e in engine.step() if isinstance(e, Finished)})
    return finished


@pytest.mark.parametrize("weights", ["auto", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_agree_with_transformers(family: str, weights: str, load: Any) -> None:
    loaded = load(family, weights=weights)
    self_check.check(loaded, preset(), ByteTokenizer())
    assert loaded.backend.startswith("native ")


@pytest.mark.parametrize("family", FAMILIES)
def test_long_rows_agree_with_transformers_too(family: str, load: Any) -> None:
    """Several pages, blocks of queries and windows, where the self-check's probes are short."""
    loaded = load(family)
    rng = random.Random(family)
    prompts = [[rng.randrange(256) for _ in range(n)] for n in (1, 63, 64, 65, 200, 391)]
    rows = [Row(request(f"{i}", p, 1), ByteTokenizer()) for i, p in enumerate(prompts)]
    pages = PagedCache(loaded.native.pool, kv_tokens=2000, slots=len(rows))
    pages.allocate(rows)
    runner = NativeRunner(loaded.native.model, loaded.native.library, pages)
    ours = prefill(runner, rows, logits=True).logits
    for prompt, logits in zip(prompts, ours, strict=True):
        theirs = self_check._reference(loaded, prompt, [len(prompt)])[len(prompt)]
        agreement = torch.nn.functional.cosine_similarity(logits, theirs.float(), dim=0)
        assert agreement > 0.995, len(prompt)


@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_a_row_makes_the_same_tokens_in_any_company(weights: str, load: Any) -> None:
    """Bit for bit, in bfloat16: alone, and with rows that come, go and are cancelled around it."""
    rng = random.Random(4)
    loaded = load("llama", weights=weights)
    wanted = {
        f"r{i}": request(
            f"r{i}",
            [rng.randrange(256) for _ in range(rng.choice([1, 5, 63, 64, 65, 130, 300]))],
            rng.randint(1, 60),
            temperature=rng.choice([0.0, 0.0, 1.5]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
            frequency_penalty=rng.choice([0.0, 0.0, 0.7]),
            logprobs=rng.choice([None, 0, 3]),
            seed=i,
        )
        for i in range(24)
    }
    alone = {}
    engine = engine_of(loaded)
    for row in wanted.values():
        assert engine.admit([row]) == []
        alone.update(drain(engine))
    waiting = list(wanted.values())
    rng.shuffle(waiting)
    together: dict[str, Finished] = {}
    while waiting or engine.num_rows:
        count = rng.randint(0, engine.capacity().free_slots)
        group, waiting = waiting[:count], waiting[count:]
        if group:
            assert engine.admit(group) == []
        if rng.random() < 0.05:
            engine.cancel([f"r{rng.randrange(24)}"])
        together.update({e.id: e for e in engine.step() if isinstance(e, Finished)})
    assert len(together) == len(wanted)
    for row_id, end in together.items():
        expected = alone[row_id]
        count = len(end.token_ids)
        if end.reason is not FinishReason.CANCELLED:
            assert count == len(expected.token_ids)
        assert end.token_ids == expected.token_ids[:count]
        if expected.logprobs is None:
            assert end.logprobs is None
        else:
            assert end.logprobs == expected.logprobs[:count]
    _go_on_behind_some_of_their_tokens(engine, wanted, alone, rng)


def _go_on_behind_some_of_their_tokens(
    engine: TransformersEngine,
    wanted: dict[str, GenerationRequest],
    alone: dict[str, Finished],
    rng: random.Random,
) -> None:
    """As after the death of their workers."""
    again: dict[str, Finished] = {}
    for row in wanted.values():
        end = alone[row.id]
        cut = rng.randint(1, len(end.token_ids))
        kept = replace(
            row,
            kept_token_ids=end.token_ids[:cut],
            kept_logprobs=None if end.logprobs is None else end.logprobs[:cut],
        )
        while engine.capacity().free_slots == 0:
            again.update({e.id: e for e in engine.step() if isinstance(e, Finished)})
        assert engine.admit([kept]) == []
    again.update(drain(engine))
    for row_id, end in alone.items():
        assert (again[row_id].token_ids, again[row_id].text) == (end.token_ids, end.text)
        assert again[row_id].logprobs == end.logprobs


def test_prefill_in_pieces_and_decode_give_the_same_bits(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load("mistral")
    rng = random.Random(8)
    tokens = [rng.randrange(256) for _ in range(150)]
    results = []
    for chunk, threads, start in ((2048, 2, 150), (37, 1, 150), (2048, 3, 90)):
        monkeypatch.setattr("worker.engines.model.backend.PREFILL_TOKENS", chunk)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        row = Row(request("r", tokens[:start], 100), ByteTokenizer())
        pages = PagedCache(loaded.native.pool, kv_tokens=300, slots=1)
        pages.allocate([row])
        runner = NativeRunner(loaded.native.model, loaded.native.library, pages)
        logits = prefill(runner, [row], logits=True).logits
        for token in tokens[start:]:
            row.append(token)
            pages.make_room()
            _, output = runner.decode([row], logits=True)
            logits = output.logits
        results.append(logits)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_best_token_is_the_first_greatest_logit(load: Any) -> None:
    loaded = load("qwen2")
    rows = [Row(request(f"{i}", [i, 9, 2 * i], 1), ByteTokenizer()) for i in range(40)]
    pages = PagedCache(loaded.native.pool, kv_tokens=400, slots=40)
    pages.allocate(rows)
    runner = NativeRunner(loaded.native.model, loaded.native.library, pages)
    output = prefill(runner, rows, logits=True)
    assert output.logits is not None
    assert output.best == output.logits.argmax(-1).tolist()


def test_a_row_with_logits_that_are_not_finite_ends_alone(load: Any) -> None:
    loaded = load("llama")
    model = loaded.native.model
    engine = engine_of(loaded)
    embedding = next(t for t in model._kept if t.shape == (ByteTokenizer.vocab_size, 96))
    before = embedding[77].clone()
    assert engine.admit([request("first", [1, 2, 3], 9)]) == []
    expected = drain(engine)["first"].token_ids
    embedding[77] = float("nan")
    assert engine.admit([request("bad", [77] * 70, 9), request("good", [1, 2, 3], 9)]) == []
    ends = drain(engine)
    embedding[77] = before
    assert ends["bad"].reason is FinishReason.ERROR
    assert ends["good"].token_ids == expected
    assert engine.admit([request("next", [1, 2, 3], 9)]) == []
    assert drain(engine)["next"].token_ids == expected


@pytest.mark.parametrize("system_prompt", ["", "Answer in one word. " * 3, "Count to ten. " * 13])
@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_a_shared_system_prompt_changes_no_bit(
    weights: str, system_prompt: str, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than a page, and several: rows that begin with it, end within it, are it, or differ."""
    loaded = load("mistral", weights=weights)
    prefix = shared_prefix(preset(system_prompt), ByteTokenizer())
    prompts = [
        *(prefix + [i] * (40 * i + 1) for i in range(5)),
        prefix,
        prefix[:-1],
        [*prefix[:-1], 7, 8, 9],
    ]
    rows = [request(f"{i}", p, 40, temperature=i % 2) for i, p in enumerate(prompts)]
    engine = engine_of(
        loaded, len(rows), system_prompt, prefix_cache_tokens=0, speculative_tokens=0
    )
    read: list[int] = []
    run = engine._runner._run
    monkeypatch.setattr(
        engine._runner,
        "_run",
        lambda rows, ids, *rest, **ended: (read.append(len(ids)), run(rows, ids, *rest, **ended))[
            1
        ],
    )
    for _ in range(2):
        read.clear()
        assert engine.admit(rows) == []
        together = drain(engine)
        assert sum(n for n in read if n > len(rows)) == sum(map(len, prompts)) - 5 * len(prefix)
    assert engine._cache.allocated_tokens == 0
    monkeypatch.setattr("worker.engines.model.engine.shared_prefix", lambda *_: [])
    plain = engine_of(loaded, len(rows))
    assert plain.admit(rows) == []
    alone = drain(plain)
    assert {i: end.token_ids for i, end in together.items()} == {
        i: end.token_ids for i, end in alone.items()
    }


def test_rows_of_one_prompt_read_it_once_and_are_as_if_alone(
    load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, in several pages; the one whose pages were copied ends first."""
    loaded = load("llama")
    prompt = [(7 * i) % 256 for i in range(150)]
    siblings = [
        request(f"{i}", prompt, n, temperature=t, seed=i)
        for i, (n, t) in enumerate([(2, 0.0), (70, 1.5), (60, 1.5), (90, 0.0)])
    ]
    other = request("other", prompt[:-1], 40)
    engine = engine_of(loaded)
    read: list[str] = []
    original = engine._runner.read

    def watched(chunk: Chunk, *, logits: bool = False) -> Any:
        read.extend(row.id for row, _, _ in chunk.pieces)
        return original(chunk, logits=logits)

    monkeypatch.setattr(engine._runner, "read", watched)
    assert engine.admit([*siblings, other]) == []
    together = drain(engine)
    assert read == ["0", "other"]
    assert engine._cache.allocated_tokens == 0
    for row in [*siblings, other]:
        alone = engine_of(loaded)
        assert alone.admit([row]) == []
        assert drain(alone)[row.id].token_ids == together[row.id].token_ids


def test_pages_are_all_given_back(load: Any) -> None:
    engine = engine_of(load("llama"))
    for _ in range(3):
        assert engine.admit([request(f"{i}", [3] * (50 * i + 1), 80) for i in range(7)]) == []
        assert set(drain(engine)) == {f"{i}" for i in range(7)}
        assert engine._cache.allocated_tokens == 0


def test_a_row_has_a_page_for_each_64_tokens() -> None:
    pages = PagedCache(partial(BytePool, 16), kv_tokens=200, slots=2)
    row = Row(request("r", [1] * 63, 90), ByteTokenizer())
    pages.allocate([row])
    for _ in range(80):
        assert pages.table_of(row).used == -(-row.num_tokens // PAGE_TOKENS)
        row.append(7)
        pages.make_room()
    pages.free(row)
    assert pages.allocated_tokens == 0


def test_without_a_compiler_torch_computes(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = load("llama").model.config._name_or_path
    monkeypatch.setattr(compiling, "find_compiler", lambda: None)
    config = EngineConfig(
        "transformers", Path(folder), preset(), dtype="bfloat16", slots=7, cache_dir=tmp_path
    )
    loaded = loading.load(config, ByteTokenizer())
    assert loaded.native is None
    assert loaded.backend == "torch cpu"
    self_check.check(loaded, preset(), ByteTokenizer())


def test_int8_without_kernels_is_refused(
    load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = load("llama").model.config._name_or_path
    monkeypatch.setattr(compiling, "find_compiler", lambda: None)
    config = EngineConfig(
        "transformers", Path(folder), preset(), weights="int8", slots=7, cache_dir=tmp_path
    )
    with pytest.raises(loading.ModelLoadError, match="C compiler"):
        loading.load(config, ByteTokenizer())
