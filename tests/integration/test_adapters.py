"""LoRA adapters: float32 rows of several in one batch, token for token as merged weights alone."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from millpond.errors import ModelLoadError
from millpond.models.presets import Preset
from millpond.models.tokenization import ByteTokenizer
from tests.integration.test_exactness import CONTEXT_TOKENS, build_model, generate_alone
from worker.engines.adapters.reading import read_adapters
from worker.engines.base import EngineConfig, Finished, GenerationRequest, Sampling
from worker.engines.model.engine import TransformersEngine
from worker.engines.model.loading import adopt, with_adapters
from worker.engines.torch.linear import PackedLinear, pack_linears

PREFIX = "base_model.model."
ATTENTION = r"q_proj|v_proj|o_proj|qkv_proj"
EVERYTHING = r"[a-z]+_proj"


def layers(model: Any, names: str) -> list[str]:
    return [path for path, _ in model.named_modules() if re.fullmatch(rf".*\.({names})", path)]


def write_adapter(
    folder: Path, model: Any, names: str, rank: int, *, seed: int, **config: Any
) -> Path:
    """A random adapter of these layers, large enough to change what the model says."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for path in layers(model, names):
        layer = model.get_submodule(path)
        shapes = {"A": (rank, layer.in_features), "B": (layer.out_features, rank)}
        for half, shape in shapes.items():
            tensors[f"{PREFIX}{path}.lora_{half}.weight"] = (
                torch.randn(shape, generator=generator) * 0.3
            )
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def merged(model: Any, folder: Path, scale: float) -> Any:
    """The model with ``W + B A scale`` for ``W``, computed here from the files."""
    model = copy.deepcopy(model)
    tensors = load_file(folder / "adapter_model.safetensors")
    for key in [k for k in tensors if ".lora_A." in k]:
        path = key.removeprefix(PREFIX).split(".lora_A.")[0]
        a, b = tensors[key].double(), tensors[key.replace("lora_A", "lora_B")].double()
        weight = model.get_submodule(path).weight
        weight.data = (weight.double() + b @ a * scale).float()
    return model


def run(engine: TransformersEngine, rows: list[GenerationRequest]) -> dict[str, Finished]:
    assert engine.admit(rows) == []
    ends = {}
    while engine.num_rows:
        ends |= {e.id: e for e in engine.step() if isinstance(e, Finished)}
    return ends


def row(id: str, length: int, adapter: str | None) -> GenerationRequest:
    prompt = [(7 * i + 3 * length) % 250 for i in range(length)]
    return GenerationRequest(id, prompt, Sampling(max_tokens=24, seed=0), adapter=adapter)


def engine_of(model: Any, adapters: dict[str, str], slots: int = 16) -> TransformersEngine:
    preset = Preset(name="tiny", source="", context_tokens=CONTEXT_TOKENS)
    config = EngineConfig("transformers", None, preset, slots=slots, adapters=adapters)
    loaded = with_adapters(adopt(model), read_adapters(model, adapters))
    return TransformersEngine(loaded, config, ByteTokenizer())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "phi3"])
def test_each_row_is_as_its_adapter_alone_makes_it(tmp_path: Path, family: str) -> None:
    model = build_model(family)
    small = write_adapter(tmp_path / "small", model, ATTENTION, 2, seed=1)
    large = write_adapter(tmp_path / "large", model, EVERYTHING, 5, seed=2, use_rslora=True)
    models = {
        None: copy.deepcopy(model),
        "small": merged(model, small, 8 / 2),
        "large": merged(model, large, 8 / math.sqrt(5)),
    }
    rows = [
        row(f"{adapter}-{length}", length, adapter) for length in (3, 40, 130) for adapter in models
    ]
    ends = run(engine_of(model, {"small": str(small), "large": str(large)}), rows)
    expected = {r.id: generate_alone(models[r.adapter], list(r.prompt_token_ids), 24) for r in rows}
    assert {id: list(end.token_ids) for id, end in ends.items()} == expected
    assert len({tuple(expected[f"{adapter}-40"]) for adapter in models}) == 3, "they all matter"


def test_company_changes_no_row(tmp_path: Path) -> None:
    model = build_model("llama")
    folder = write_adapter(tmp_path / "a", model, EVERYTHING, 4, seed=1)
    engine = engine_of(model, {"a": str(folder), "b": str(folder)})
    alone = {adapter: run(engine, [row("r", 20, adapter)])["r"] for adapter in (None, "a", "b")}
    together = run(engine, [row(str(adapter), 20, adapter) for adapter in (None, "a", "b")])
    for adapter, end in alone.items():
        assert together[str(adapter)].token_ids == end.token_ids
    assert alone["a"].token_ids == alone["b"].token_ids != alone[None].token_ids


def test_adapters_stand_beside_packed_layers_too(tmp_path: Path) -> None:
    model = build_model("llama").to(torch.bfloat16)
    folder = write_adapter(tmp_path / "a", model, EVERYTHING, 4, seed=1)
    plain = run(engine_of(copy.deepcopy(model), {"a": str(folder)}), [row("r", 20, "a")])
    if not pack_linears(model):
        pytest.skip("this torch packs no layers")
    assert any(isinstance(m, PackedLinear) for m in model.modules())
    packed = run(engine_of(model, {"a": str(folder)}), [row("r", 20, "a")])
    assert packed["r"].token_ids[:4] == plain["r"].token_ids[:4]


def test_a_folder_and_its_adapters_are_loaded_by_name(tmp_path: Path) -> None:
    model = build_model("llama")
    model.save_pretrained(tmp_path / "model")
    folder = write_adapter(
        tmp_path / "a", model, ATTENTION, 2, seed=1, alpha_pattern={"layers.0.self_attn.q_proj": 2}
    )
    preset = Preset(name="tiny", source="", context_tokens=CONTEXT_TOKENS, adapters=("a",))
    config = EngineConfig(
        "transformers",
        tmp_path / "model",
        preset,
        dtype="float32",
        slots=4,
        adapters={"a": str(folder)},
    )
    engine = TransformersEngine.load(config, ByteTokenizer())
    engine.warm_up()
    ends = run(engine, [row("with", 20, "a"), row("without", 20, None)])
    reference = merged(model, folder, 8 / 2)
    q_proj = reference.get_submodule("model.layers.0.self_attn.q_proj").weight
    own = model.get_submodule("model.layers.0.self_attn.q_proj").weight
    q_proj.data = own + (q_proj - own) / 4
    prompt = list(row("r", 20, None).prompt_token_ids)
    assert list(ends["with"].token_ids) == generate_alone(reference, prompt, 24)
    assert list(ends["without"].token_ids) == generate_alone(model, prompt, 24)
    [rejection] = engine.admit([row("r", 4, "b")])
    assert "'b' is not loaded" in rejection.message
    engine.close()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "is no LoRA adapter's"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not supported"),
        ({"bias": "all"}, "bias 'all' is not supported"),
    ],
)
def test_what_is_more_than_two_matrices_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    model = build_model("llama")
    folder = write_adapter(tmp_path / "a", model, ATTENTION, 2, seed=1, **config)
    with pytest.raises(ModelLoadError, match=message):
        engine_of(model, {"a": str(folder)})


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("model.layers.9.self_attn.q_proj.lora_A.weight", (2, 48), "no layer model.layers.9"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (2, 47), "is 48 to 48 in this model"),
        ("model.layers.0.mlp.up_proj.lora_A.weight", (2, 48), "one matrix without the other"),
        ("lm_head.lora_A.weight", (2, 48), "adapters of lm_head are not supported"),
        ("model.layers.0.self_attn.q_proj.weight", (2, 2), "is no matrix of a LoRA adapter"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    tmp_path: Path, key: str, shape: tuple[int, int], message: str
) -> None:
    model = build_model("llama")
    folder = write_adapter(tmp_path / "a", model, ATTENTION, 2, seed=1)
    file = folder / "adapter_model.safetensors"
    save_file(load_file(file) | {PREFIX + key: torch.zeros(shape)}, file)
    with pytest.raises(ModelLoadError, match=message):
        engine_of(model, {"a": str(folder)})


def test_a_folder_without_the_files_is_said(tmp_path: Path) -> None:
    model = build_model("llama")
    with pytest.raises(ModelLoadError, match="adapter_config"):
        engine_of(model, {"a": str(tmp_path)})
    folder = write_adapter(tmp_path / "a", model, ATTENTION, 2, seed=1)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="adapter_model"):
        engine_of(model, {"a": str(folder)})
