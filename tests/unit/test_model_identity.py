"""A model is what its files and its preset say, whatever it is called and wherever it lies."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from millpond.models.identity import difference, model_identity
from millpond.models.presets import PRESETS, Preset

PRESET = Preset(name="small", source="a/small")


def model(folder: Path, **changes: object) -> Path:
    """A folder with small files; ``changes`` replace or, as None, remove some."""
    folder.mkdir()
    files: dict[str, object] = {
        "config.json": {"hidden_size": 4, "vocab_size": 9, "_name_or_path": str(folder)},
        "generation_config.json": {"eos_token_id": 2, "transformers_version": folder.name},
        "tokenizer_config.json": {"bos_token": "<s>"},
        "tokenizer.json": {"model": "bpe"},
        "chat_template.jinja": "{{ messages }}",
    }
    for name, content in (files | {k.replace("__", "."): v for k, v in changes.items()}).items():
        if content is not None:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)
    return folder


def identity(folder: Path | None, preset: Preset = PRESET) -> str:
    return model_identity(folder, preset, made_by="transformers")


def test_the_same_content_under_another_name_is_the_same_model(tmp_path: Path) -> None:
    one, other = model(tmp_path / "one"), model(tmp_path / "other")
    assert identity(one) == identity(other, replace(PRESET, name="other", source="elsewhere"))


def test_the_order_of_a_configs_fields_says_nothing(tmp_path: Path) -> None:
    one = model(tmp_path / "one")
    turned = model(tmp_path / "other", config__json={"vocab_size": 9, "hidden_size": 4})
    assert identity(one) == identity(turned)


@pytest.mark.parametrize(
    "change",
    [
        {"config__json": {"hidden_size": 8, "vocab_size": 9}},
        {"generation_config__json": {"eos_token_id": 3}},
        {"tokenizer_config__json": {"bos_token": "<S>"}},
        {"tokenizer__json": {"model": "unigram"}},
        {"chat_template__jinja": "{{ messages[0] }}"},
        {"chat_template__jinja": None},
    ],
)
def test_other_content_under_the_same_name_is_another_model(
    tmp_path: Path, change: dict[str, object]
) -> None:
    one = identity(model(tmp_path / "one"))
    other = identity(model(tmp_path / "other", **change))
    assert one != other
    assert difference(one, other) == "its config or tokenizer files differ"


@pytest.mark.parametrize(
    "change",
    [{"system_prompt": "Be brief."}, {"temperature": 1.0}, {"adapters": ("sql",)}],
)
def test_another_preset_is_another_model(tmp_path: Path, change: dict[str, object]) -> None:
    folder = model(tmp_path / "one")
    one, other = identity(folder), identity(folder, replace(PRESET, **change))  # type: ignore[arg-type]
    assert one != other
    assert difference(one, other).startswith("its preset differs")


def test_without_files_it_is_what_writes_the_text() -> None:
    preset = PRESETS["simulated"]
    simulated = model_identity(None, preset, made_by="simulated")
    assert simulated == model_identity(None, preset, made_by="simulated")
    assert simulated != model_identity(None, preset, made_by="chat some-model")


def test_a_file_that_cannot_be_read_is_left_to_the_loader(tmp_path: Path) -> None:
    broken = model(tmp_path / "one", config__json="{")
    missing = model(tmp_path / "other", config__json=None)
    assert identity(broken) == identity(missing)
