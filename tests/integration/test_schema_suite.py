"""Whatever a model writes under a schema parses and validates, if it gets to its end."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from millpond.messages import FinishReason, Message
from millpond.models.grammars import GrammarCompiler
from millpond.models.presets import PRESETS, Preset
from millpond.models.tokenization import ByteTokenizer, FolderTokenizer, Tokenizer
from tests.integration.schemas import random_schemas
from tests.knobs import SCHEMAS
from worker.engines import build_engine
from worker.engines.base import Engine, EngineConfig, Finished, GenerationRequest, Sampling
from worker.engines.model.engine import TransformersEngine
from worker.engines.model.loading import adopt
from worker.weights import prepare_model

SLOTS = 64
MAX_TOKENS = 250
# A sample with random weights, whose text is as wild as can be; in full with the real model, too.
MODELS = ["random weights", *(["smollm2-135m"] if SCHEMAS >= 500 else [])]


def random_weights() -> tuple[Engine, Tokenizer]:
    torch.manual_seed(3)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=ByteTokenizer.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=ByteTokenizer.EOS,
        )
    ).eval()
    config = EngineConfig(
        "transformers", None, Preset("tiny", "", context_tokens=512), slots=SLOTS, kv_tokens=32_768
    )
    return TransformersEngine(adopt(model), config, ByteTokenizer()), ByteTokenizer()


def real_model(name: str) -> tuple[Engine, Tokenizer]:
    preset = PRESETS[name]
    folder = prepare_model(preset, Path.home() / ".cache" / "millpond")
    tokenizer = FolderTokenizer(folder)
    config = EngineConfig("transformers", folder, preset, slots=SLOTS, kv_tokens=65_536)
    return build_engine(config, tokenizer), tokenizer


@pytest.fixture(params=MODELS)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Engine, Tokenizer]]:
    threads = torch.get_num_threads()
    if request.param == "random weights":
        torch.set_num_threads(1)  # for so small a model, others would only be in the way
        engine, tokenizer = random_weights()
    else:
        engine, tokenizer = real_model(request.param)
    yield engine, tokenizer
    engine.close()
    torch.set_num_threads(threads)


def run(engine: Engine, requests: list[GenerationRequest]) -> dict[str, Finished]:
    """Each row takes the first slot that is free, so that all lengths run side by side."""
    ends: dict[str, Finished] = {}
    waiting = list(requests)
    while waiting or engine.num_rows:
        free = engine.capacity().free_slots
        if waiting and free:
            assert engine.admit(waiting[:free]) == []
            waiting = waiting[free:]
        ends.update({event.id: event for event in engine.step() if isinstance(event, Finished)})
    return ends


def test_every_finished_output_validates(served: tuple[Engine, Tokenizer]) -> None:
    engine, tokenizer = served
    schemas = random_schemas(GrammarCompiler(tokenizer), SCHEMAS, seed=SCHEMAS)
    prompt = tokenizer.encode_chat([Message(role="user", content="Invent some data. JSON only.")])
    rows = [
        GenerationRequest(
            f"{i}",
            prompt,
            Sampling(MAX_TOKENS, seed=i, temperature=(0.0, 0.7, 1.0)[i % 3]),
            grammar=schema.grammar,
        )
        for i, schema in enumerate(schemas)
    ]
    free = [
        replace(
            row, id=f"free {row.id}", sampling=replace(row.sampling, max_tokens=40), grammar=None
        )
        for row in rows[:3]
    ]
    ends = run(engine, [free[0], *rows, *free[1:]])
    finished = 0
    for i, schema in enumerate(schemas):
        end = ends[f"{i}"]
        assert end.reason in (FinishReason.STOP, FinishReason.LENGTH), end
        if end.reason is FinishReason.STOP:
            schema.validator.validate(json.loads(end.text))
            finished += 1
        else:
            assert len(end.token_ids) == MAX_TOKENS
    print(f"{finished} of {len(schemas)} came to their ends, and all of those validate")
    assert finished > len(schemas) // 2
    alone = run(engine, free)
    assert {name: ends[name].token_ids for name in alone} == {
        name: end.token_ids for name, end in alone.items()
    }
