"""The real SmolLM2-135M: right answers, exactness and the chat template."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from millpond.errors import ModelLoadError
from millpond.messages import FinishReason, Message
from millpond.messages.constraints import Constraint
from millpond.models.grammars import GrammarCompiler
from millpond.models.presets import PRESETS, SMOLLM2_WHEEL, Preset
from millpond.models.tokenization import FolderTokenizer
from worker.engines import build_engine
from worker.engines.base import Engine, EngineConfig, Finished, GenerationRequest, Sampling
from worker.weights import prepare_model

pytestmark = pytest.mark.model

PRESET = PRESETS["smollm2-135m"]
MAX_TOKENS = 12
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "born": {"type": "integer", "minimum": 1000, "maximum": 2100},
        "field": {"enum": ["mathematics", "poetry"]},
    },
    "required": ["name", "born", "field"],
    "additionalProperties": False,
}
QUESTIONS = [
    "What is the capital of France?",
    "List the first five prime numbers.",
    "Tom has 3 boxes with 12 pencils each. He gives 7 pencils away. How many are left? " * 4,
    "Say hi.",
    "Explain in detail, step by step, why the sum of two odd numbers is even. " * 9,
]


@pytest.fixture(scope="module")
def folder() -> Path:
    return prepare_model(PRESET, Path.home() / ".cache" / "millpond")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> FolderTokenizer:
    return FolderTokenizer(folder)


@pytest.fixture(scope="module")
def engine(folder: Path, tokenizer: FolderTokenizer) -> Iterator[Engine]:
    config = EngineConfig("transformers", folder, PRESET, dtype="float32", slots=8)
    engine = build_engine(config, tokenizer)
    engine.warm_up()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


def chat(
    tokenizer: FolderTokenizer, row_id: str, question: str, **sampling: Any
) -> GenerationRequest:
    prompt = tokenizer.encode_chat([Message(role="user", content=question)])
    values = {"max_tokens": MAX_TOKENS, "seed": 1, **sampling}
    return GenerationRequest(row_id, prompt, Sampling(**values))


def run(engine: Engine, *groups: list[GenerationRequest]) -> dict[str, Finished]:
    """Admit the groups three steps apart and run dry."""
    finished: dict[str, Finished] = {}
    waiting = list(groups)
    steps = 0
    while waiting or engine.num_rows:
        if waiting and steps % 3 == 0:
            assert engine.admit(waiting.pop(0)) == []
        finished.update({e.id: e for e in engine.step() if isinstance(e, Finished)})
        steps += 1
    return finished


def test_it_knows_the_capital_of_france(engine: Engine, tokenizer: FolderTokenizer) -> None:
    end = run(engine, [chat(tokenizer, "r", QUESTIONS[0])])["r"]
    assert "Paris" in end.text
    assert end.reason is FinishReason.STOP
    assert "<|" not in end.text


def test_rows_of_any_length_and_arrival_equal_generate_alone(
    engine: Engine, tokenizer: FolderTokenizer, reference: Any
) -> None:
    import torch

    rows = [chat(tokenizer, f"r{i}", q) for i, q in enumerate(QUESTIONS)]
    finished = run(engine, rows[:2], rows[2:])
    for row in rows:
        ids = torch.tensor([row.prompt_token_ids])
        with torch.inference_mode():
            out = reference.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_TOKENS, do_sample=False
            )
        assert list(finished[row.id].token_ids) == out[0, ids.shape[1] :].tolist()


def test_a_sampled_row_is_the_same_in_company(engine: Engine, tokenizer: FolderTokenizer) -> None:
    row = chat(tokenizer, "r", QUESTIONS[1], temperature=0.8, top_p=0.9, seed=4)
    others = [chat(tokenizer, f"o{i}", q, temperature=1.0) for i, q in enumerate(QUESTIONS)]
    alone = run(engine, [row])["r"]
    assert run(engine, others, [row])["r"].token_ids == alone.token_ids


def test_a_schema_is_kept_to_among_free_rows_which_stay_as_they_were(
    engine: Engine, tokenizer: FolderTokenizer
) -> None:
    free = [chat(tokenizer, f"free {i}", q) for i, q in enumerate(QUESTIONS[:2])]
    alone = run(engine, free)
    wrapped = Constraint("json_schema", "response_format", json.dumps(PERSON))
    grammar = GrammarCompiler(tokenizer).compile(wrapped)
    rows = [
        replace(
            chat(
                tokenizer,
                f"{i}",
                "Who was Ada Lovelace?",
                max_tokens=120,
                temperature=i / 2,
                seed=i,
            ),
            grammar=grammar,
        )
        for i in range(3)
    ]
    ends = run(engine, [free[0], *rows], [free[1]])
    assert {name: ends[name].token_ids for name in alone} == {
        name: end.token_ids for name, end in alone.items()
    }
    finished = [ends[row.id] for row in rows if ends[row.id].reason is FinishReason.STOP]
    assert finished
    for end in finished:
        Draft202012Validator(PERSON).validate(json.loads(end.text))


def test_deltas_and_stop_strings_on_real_text(engine: Engine, tokenizer: FolderTokenizer) -> None:
    whole = run(engine, [chat(tokenizer, "r", QUESTIONS[1])])["r"].text
    stop = whole[10:14]
    cut = run(engine, [chat(tokenizer, "r", QUESTIONS[1], stop=(stop,))])["r"]
    assert cut.reason is FinishReason.STOP
    assert cut.text == whole[: whole.index(stop)]


@pytest.mark.parametrize("system", [None, "You are terse."])
def test_the_chat_template_gives_the_ids_that_transformers_gives(
    folder: Path, tokenizer: FolderTokenizer, system: str | None
) -> None:
    from transformers import AutoTokenizer

    messages = [Message(role="user", content="Größe? 😀 <|im_end|> x")]
    if system:
        messages.insert(0, Message(role="system", content=system))
    ours = tokenizer.encode_chat(messages)
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [m.model_dump() for m in messages], add_generation_prompt=True, tokenize=True
    )
    assert ours == list(theirs["input_ids"])


def test_streamed_text_of_any_tokens_equals_the_whole_decoded(tokenizer: FolderTokenizer) -> None:
    import random

    from worker.engines.scheduling.row_text import RowText

    rng = random.Random(5)
    for _ in range(200):
        row = RowText(tokenizer)
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randint(1, 30))]
        deltas = [row.push(i) for i in ids]
        deltas.append(row.finish())
        assert "".join(deltas) == row.text == tokenizer.decode(ids)


def test_a_second_preparation_finds_the_first(folder: Path) -> None:
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert prepare_model(PRESET, Path.home() / ".cache" / "millpond") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_sources_that_hold_no_model_are_refused(tmp_path: Path) -> None:
    for source, complaint in [
        (str(tmp_path), "config.json"),
        ("wheel:no_such_package", "not installed"),
        (str(tmp_path / "absent"), "neither a folder"),
    ]:
        with pytest.raises(ModelLoadError, match=complaint):
            prepare_model(Preset(name="x", source=source), tmp_path)
    assert SMOLLM2_WHEEL.startswith("wheel:")
