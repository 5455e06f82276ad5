"""LoRA adapters in the compiled kernels: what merged weights say, and bits that no company changes."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from millpond.errors import UnsupportedModelError
from millpond.models.prompts import shared_prefix
from millpond.models.tokenization import ByteTokenizer
from tests.integration.test_adapters import (
    ATTENTION,
    EVERYTHING,
    merged,
    run,
    write_adapter,
)
from tests.integration.test_exactness import generate_alone
from tests.integration.test_native import FAMILIES, engine_of, kernels, preset, request
from worker.engines.base import EngineConfig, GenerationRequest
from worker.engines.model import loading, self_check
from worker.engines.model.backend import build_backend, prefill
from worker.engines.paging.pages import PAGE_TOKENS
from worker.engines.scheduling.row import Row

__all__ = ["kernels"]  # a fixture

Load = Callable[..., loading.LoadedModel]
NAMES = (None, "small", "large")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Path]]:
    """A random model of a family and two adapters of it: one of attention alone, one of all layers."""
    made: dict[str, dict[str, Path]] = {}

    def folders(family: str) -> dict[str, Path]:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            torch.manual_seed(11)
            model = FAMILIES[family]()
            model.save_pretrained(folder / "model")
            made[family] = {
                "model": folder / "model",
                "small": write_adapter(folder / "small", model, ATTENTION, 3, seed=1),
                "large": write_adapter(
                    folder / "large", model, EVERYTHING, 40, seed=2, use_rslora=True
                ),
            }
        return made[family]

    return folders


@pytest.fixture(scope="module")
def load(folders: Callable[[str], dict[str, Path]]) -> Load:
    def load(family: str, **config: Any) -> loading.LoadedModel:
        found = folders(family)
        adapters = {name: str(found[name]) for name in ("small", "large")}
        chosen = EngineConfig(
            *("transformers", found["model"], preset()), slots=7, adapters=adapters, **config
        )
        loaded = loading.load(chosen, ByteTokenizer())
        assert loaded.backend.startswith("native ")
        return loaded

    return load


def adapted(adapter: str | None, length: int, max_tokens: int = 20) -> GenerationRequest:
    prompt = [(7 * i + 3 * length) % 250 for i in range(length)]
    return replace(request(f"{adapter}-{length}", prompt, max_tokens), adapter=adapter)


def logits_of(loaded: loading.LoadedModel, requests: list[GenerationRequest]) -> dict[str, Any]:
    """Of each row: after its prompt, read in small chunks, and after each of four tokens more."""
    rows = [Row(request, ByteTokenizer()) for request in requests]
    cache, runner = build_backend(loaded, kv_tokens=2000, slots=len(rows))
    cache.allocate(rows)
    output = prefill(runner, rows, logits=True, chunk_tokens=37)
    found = {row.id: [logits] for row, logits in zip(rows, output.copy().logits, strict=True)}
    for token in range(4):
        for row in rows:
            row.append(token)
        cache.make_room()
        decoded, output = runner.decode(rows, logits=True)
        for row, logits in zip(decoded, output.copy().logits, strict=True):
            found[row.id].append(logits)
    return {id: torch.stack(logits) for id, logits in found.items()}


@pytest.mark.parametrize("family", ["llama-one-kv-head", "qwen2", "phi3"])
def test_in_float32_each_row_is_token_for_token_that_of_merged_weights(
    family: str, load: Load, folders: Callable[[str], dict[str, Path]]
) -> None:
    """In one batch, and again behind pages that are kept: of equal prompts with a shared system prompt, of
    which each adapter has keys and values of its own."""
    loaded, system_prompt = load(family, dtype="float32"), "Count to ten. " * 6
    prefix = shared_prefix(preset(system_prompt), ByteTokenizer())
    assert len(prefix) > PAGE_TOKENS
    prompts = [[3, 5], [9] * 31, [*prefix, 7], prefix + [8] * 70]
    rows = [
        replace(request(f"{adapter}-{i}", prompt, 16), adapter=adapter)
        for i, prompt in enumerate(prompts)
        for adapter in NAMES
    ]
    options = {"adapters": dict.fromkeys(("small", "large"), ""), "prefix_cache_tokens": 4096}
    engine = engine_of(loaded, len(rows), system_prompt, **options)
    ends = [run(engine, rows) for _ in range(2)]
    found = folders(family)
    base = loading.AutoModelForCausalLM.from_pretrained(found["model"], dtype=torch.float32)
    models = {
        None: base,
        "small": merged(base, found["small"], 8 / 3),
        "large": merged(base, found["large"], 8 / math.sqrt(40)),
    }
    expected = {
        row.id: generate_alone(models[row.adapter], list(row.prompt_token_ids), 16) for row in rows
    }
    for found_ids in ({id: list(e.token_ids) for id, e in some.items()} for some in ends):
        assert found_ids == expected
    assert len({tuple(expected[f"{name}-1"]) for name in NAMES}) == 3, "they all matter"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own
def test_what_peft_saves_says_what_peft_says(
    folders: Callable[[str], dict[str, Path]], tmp_path: Path
) -> None:
    """Its ranks and alphas by layer, merged and not."""
    folder = folders("llama")["model"]
    model = loading.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(
        r=6,
        lora_alpha=5,
        target_modules="all-linear",
        rank_pattern={"layers.1.mlp.down_proj": 20, "k_proj": 1},
        alpha_pattern={"o_proj": 11},
        use_rslora=True,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(4)
    theirs = peft.get_peft_model(model, config).eval()
    theirs.save_pretrained(tmp_path)
    chosen = EngineConfig(
        *("transformers", folder, preset(), "float32"), slots=2, adapters={"a": str(tmp_path)}
    )
    engine = engine_of(loading.load(chosen, ByteTokenizer()), adapters={"a": ""})
    end = run(engine, [adapted("a", 40)])["a-40"]
    prompt = list(adapted("a", 40).prompt_token_ids)
    assert list(end.token_ids) == generate_alone(theirs.get_base_model(), prompt, 20)
    assert list(end.token_ids) == generate_alone(theirs.merge_and_unload(), prompt, 20)


@pytest.mark.parametrize("weights", ["auto", "int8"])
@pytest.mark.parametrize("threads", [1, 3])
def test_company_changes_no_bit(
    weights: str, threads: int, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a row with an adapter, nor of one without."""
    loaded = load("llama", dtype="bfloat16", weights=weights)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rows = [adapted(name, length) for length in (1, 13, 90) for name in NAMES]
    together = logits_of(loaded, rows)
    for row in rows:
        assert torch.equal(logits_of(loaded, [row])[row.id], together[row.id]), row.id


def test_rows_without_an_adapter_have_the_bits_of_a_model_without(load: Load) -> None:
    loaded = load("llama")
    assert loaded.native is not None
    engine = EngineConfig(
        "transformers", Path(loaded.model.config._name_or_path), preset(), slots=7
    )
    rows = [adapted(None, 5), adapted(None, 70)]
    beside = logits_of(loaded, [rows[0], adapted("large", 30), rows[1]])
    for id, logits in logits_of(loading.load(engine, ByteTokenizer()), rows).items():
        assert torch.equal(logits, beside[id])


def test_an_adapter_that_is_computed_wrongly_is_refused_at_load(load: Load) -> None:
    loaded = load("llama", dtype="float32")
    assert loaded.native is not None
    self_check.check(loaded, preset(), ByteTokenizer())
    loaded.native.model.struct.layer[1].down.lora[1].columns = 0
    with pytest.raises(UnsupportedModelError, match="of adapter 'large'"):
        self_check.check(loaded, preset(), ByteTokenizer())
