"""What is known of a model before it is loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from millpond.errors import ModelLoadError
from millpond.models.presets import PRESETS, THINK, find_preset


def folder(path: Path, config: Any, generation: Any = None) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_consistent(name: str) -> None:
    preset = find_preset(name, Path())
    assert preset.name == name
    assert 1 <= preset.max_tokens <= preset.max_output_tokens
    # Whatever a client may ask for leaves room for a prompt.
    assert preset.max_output_tokens < preset.context_tokens
    assert preset.max_prompt_tokens + preset.max_tokens <= preset.context_tokens
    assert 0 <= preset.temperature <= 2
    assert 0 < preset.top_p <= 1


def test_the_presets_that_are_promised() -> None:
    assert {"smollm2-135m", "vibethinker-1.5b", "vibethinker-3b"} <= PRESETS.keys()


def test_a_folder(tmp_path: Path) -> None:
    preset = find_preset(str(folder(tmp_path, {"max_position_embeddings": 2048})), tmp_path)
    assert (preset.name, preset.source) == (tmp_path.name, str(tmp_path))
    assert (preset.context_tokens, preset.max_prompt_tokens, preset.max_output_tokens) == (
        2048,
        1024,
        1024,
    )
    assert preset.temperature == 0.0


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}, (0.6, 0.9, 20, 1.0)),
        ({"do_sample": True}, (1.0, 1.0, 0, 1.0)),
        ({"do_sample": False, "temperature": 0.6}, (0.0, 1.0, 0, 1.0)),
        ({"do_sample": False, "repetition_penalty": 1.1}, (0.0, 1.0, 0, 1.1)),
        ({"do_sample": True, "repetition_penalty": 1.1}, (1.0, 1.0, 0, 1.1)),
    ],
)
def test_a_folders_sampling(
    tmp_path: Path, generation: dict[str, Any], expected: tuple[float, float, int, float]
) -> None:
    preset = find_preset(str(folder(tmp_path, {}, generation)), tmp_path)
    found = (preset.temperature, preset.top_p, preset.top_k, preset.repetition_penalty)
    assert found == expected


def test_a_small_context_bounds_everything(tmp_path: Path) -> None:
    preset = find_preset(str(folder(tmp_path, {"max_position_embeddings": 64})), tmp_path)
    assert preset.max_tokens == 32
    assert preset.max_prompt_tokens + preset.max_tokens <= 64


TEMPLATE = "{{ messages }}"


@pytest.mark.parametrize(
    ("files", "chat"),
    [
        ({}, False),
        ({"tokenizer_config.json": "{}"}, False),
        ({"tokenizer_config.json": json.dumps({"chat_template": TEMPLATE})}, True),
        ({"tokenizer_config.json": json.dumps({"chat_template": [{"name": "rag"}]})}, False),
        ({"chat_template.jinja": TEMPLATE}, True),
    ],
)
def test_a_folder_without_a_chat_template_is_a_base_model(
    tmp_path: Path, files: dict[str, str], chat: bool
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert find_preset(str(folder(tmp_path, {})), tmp_path).chat is chat


@pytest.mark.parametrize(
    ("template", "thinks"),
    [
        (TEMPLATE, False),
        ("{% if add_generation_prompt %}<think>\n{% endif %}", True),
        ("{{ message.content.split('</think>')[-1] }}", True),
    ],
)
def test_a_template_with_a_marker_is_of_a_model_that_reasons(
    tmp_path: Path, template: str, thinks: bool
) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    preset = find_preset(str(folder(tmp_path, {})), tmp_path)
    assert preset.thinking == (THINK if thinks else None)
    assert PRESETS["vibethinker-3b"].thinking == THINK


@pytest.mark.parametrize("model", ["nothing", "", "./folder/x", "/no/such", "a/b/c"])
def test_what_is_no_model(model: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        find_preset(model, Path())
    assert "smollm2-135m" in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", "5"])
def test_a_broken_config_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        find_preset(str(tmp_path), tmp_path)
