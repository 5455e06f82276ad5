"""The head of a GGUF file, and the preset that is made from it."""

import struct
from pathlib import Path

import pytest

from millpond.errors import ModelLoadError
from millpond.models.config import read_model_config
from millpond.models.gguf_header import read_gguf_header, read_gguf_tensor_names
from millpond.models.presets import find_preset, model_folder


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(*entries: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(entries)) + b"".join(entries)


ENTRIES = (
    string("general.architecture") + struct.pack("<I", 8) + string("llama"),
    string("tokens") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string("bc"),
    string("scores") + struct.pack("<IIQ3f", 9, 6, 3, 1.0, 2.0, 3.0),
    string("llama.rope") + struct.pack("<If", 6, 0.5),
    string("llama.context_length") + struct.pack("<II", 4, 2048),
)


def write(tmp_path: Path, content: bytes) -> Path:
    file = tmp_path / "tiny.Q4_0.gguf"
    file.write_bytes(content)
    return file


def test_entries_are_found_by_the_end_of_their_keys(tmp_path: Path) -> None:
    file = write(tmp_path, gguf(*ENTRIES))
    found = read_gguf_header(file, (".context_length", ".rope", "architecture", "tokens", "no"))
    assert found == {".context_length": 2048, ".rope": 0.5, "architecture": "llama", "tokens": 2}


def test_the_names_of_the_tensors(tmp_path: Path) -> None:
    tensors = [string(name) + struct.pack("<IQQIQ", 2, 3, 4, 0, 0) for name in ("a.weight", "b")]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(ENTRIES))
    content = head + b"".join((*ENTRIES, *tensors))
    assert read_gguf_tensor_names(write(tmp_path, content)) == {"a.weight", "b"}
    with pytest.raises(ModelLoadError, match="unexpected end of file"):
        read_gguf_tensor_names(write(tmp_path, content[:-1]))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGML" + bytes(100),
        gguf(*ENTRIES)[:-6],
        gguf(*ENTRIES, version=9),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40),
        gguf(string("key") + struct.pack("<I", 77)),
        gguf(string("key") + struct.pack("<IQ", 8, 2**60)),
        gguf(struct.pack("<Q", 2) + b"\xff\xff"),
    ],
)
def test_what_is_no_gguf_is_said(tmp_path: Path, content: bytes) -> None:
    file = write(tmp_path, content)
    with pytest.raises(ModelLoadError, match=r"tiny.Q4_0\.gguf: is not a readable GGUF file"):
        read_gguf_header(file, (".context_length",))


def test_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    preset = find_preset(str(write(tmp_path, gguf(*ENTRIES))), tmp_path)
    assert preset.name == "tiny.Q4_0"
    assert (preset.context_tokens, preset.max_prompt_tokens) == (2048, 1024)
    assert preset.chat is False
    template = string("tokenizer.chat_template") + struct.pack("<I", 8) + string("{{ messages }}")
    assert find_preset(str(write(tmp_path, gguf(*ENTRIES, template))), tmp_path).chat is True
    with pytest.raises(ModelLoadError, match="nowhere"):
        find_preset(str(tmp_path / "nowhere.gguf"), tmp_path)


def test_a_plan_reads_the_head_and_rather_the_converted_copy(tmp_path: Path) -> None:
    preset = find_preset(str(write(tmp_path, gguf(*ENTRIES))), tmp_path)
    head = read_model_config(preset, tmp_path)
    assert (head["model_type"], head["max_position_embeddings"]) == ("llama", 2048)
    assert head["tie_word_embeddings"] is True
    copy = model_folder(preset, tmp_path)
    copy.mkdir(parents=True)
    (copy / "config.json").write_text('{"model_type": "llama"}')
    assert read_model_config(preset, tmp_path) == {"model_type": "llama"}


def test_files_of_one_name_have_copies_of_their_own(tmp_path: Path) -> None:
    folders = set()
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        preset = find_preset(str(write(tmp_path / place, gguf(*ENTRIES))), tmp_path)
        folders.add(model_folder(preset, tmp_path))
    assert len(folders) == 2
    assert all(folder.name.startswith("tiny.Q4_0-") for folder in folders)
