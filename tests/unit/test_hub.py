"""Models of the hub: the same presets as from a folder, no weights for that, and reasons for failures."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from millpond.errors import ModelLoadError
from millpond.models import hub as hub_files
from millpond.models.config import read_model_config
from millpond.models.files import PRESET_FILES
from millpond.models.presets import Preset, find_preset
from millpond.settings import Settings
from tests.fake_hub import FakeHub, fake_hub, point_at
from worker.weights import prepare_tokenizer

NAME = "owner/tiny"
GENERATION = {
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
    "repetition_penalty": 1.1,
    "eos_token_id": [3, 4],
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as running:
        point_at(running.url, monkeypatch)
        yield running


@pytest.fixture
def model(tmp_path: Path, hub: FakeHub) -> Path:
    """A model's folder, which the hub has, too."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    files = {
        "config.json": {"model_type": "llama", "max_position_embeddings": 32_768},
        "generation_config.json": GENERATION,
        "tokenizer_config.json": {"chat_template": "{{ messages }}"},
        "tokenizer.json": {},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "model.safetensors").write_bytes(b"weights")
    hub.models[NAME] = folder
    return folder


def from_folder(folder: Path) -> Preset:
    return replace(find_preset(str(folder), Path()), name=NAME, source=NAME)


def test_a_hub_name_gives_the_preset_of_the_same_folder(
    model: Path, hub: FakeHub, tmp_path: Path
) -> None:
    preset = find_preset(NAME, tmp_path / "cache")
    assert preset == from_folder(model)
    assert (preset.temperature, preset.top_p, preset.top_k) == (0.6, 0.95, 20)
    assert (preset.repetition_penalty, preset.context_tokens, preset.chat) == (1.1, 32_768, True)
    assert set(hub.fetched) <= set(PRESET_FILES), "no weights, no tokenizer"
    hub.fetched.clear()
    settings = Settings(model=NAME, cache_dir=tmp_path / "cache")
    assert settings.preset() == preset
    assert read_model_config(preset, tmp_path / "cache")["max_position_embeddings"] == 32_768
    assert hub.fetched == [], "what is there is not fetched again"


def test_a_base_model_of_the_hub_answers_no_chat(model: Path, tmp_path: Path) -> None:
    (model / "tokenizer_config.json").unlink()
    preset = find_preset(NAME, tmp_path / "cache")
    assert preset == from_folder(model)
    assert preset.chat is False


def test_the_tokenizer_comes_without_weights_and_lies_where_the_api_looks(
    model: Path, hub: FakeHub, tmp_path: Path
) -> None:
    preset = find_preset(NAME, tmp_path / "cache")
    folder = prepare_tokenizer(preset, tmp_path / "cache")
    assert (folder / "tokenizer.json").is_file()
    assert "model.safetensors" not in hub.fetched
    linked = tmp_path / "cache" / "models" / "owner--tiny"
    assert linked.resolve() == folder.resolve()


def test_without_a_connection_an_earlier_download_serves(
    model: Path, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = find_preset(NAME, tmp_path / "cache")
    point_at("http://127.0.0.1:1", monkeypatch)
    assert find_preset(NAME, tmp_path / "cache") == preset
    with pytest.raises(ModelLoadError, match="cannot be reached"):
        prepare_tokenizer(preset, tmp_path / "cache")  # those files were not


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (404, "RepoNotFound", "the hub has no such model"),
        (401, "", "the hub has no such model, or it is private and HF_TOKEN has no access"),
        (403, "GatedRepo", "it is gated: request access on its page on the hub"),
        (403, "", "answers 403"),
        (500, "", "answers 500"),
    ],
)
def test_why_the_hub_refuses(
    status: int, code: str, reason: str, model: Path, hub: FakeHub, tmp_path: Path
) -> None:
    hub.refused[NAME] = (status, code)
    message = refusal(NAME, tmp_path / "cache")
    assert message.startswith(f"model {NAME}: ")
    assert reason in message


def test_a_hub_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:1", monkeypatch)
    message = refusal(NAME, tmp_path / "cache")
    assert "the hub at http://127.0.0.1:1 cannot be reached (ConnectionRefusedError: " in message


def test_a_model_that_was_never_fetched_offline(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(NAME, tmp_path / "cache")


def test_a_model_without_a_config(model: Path, tmp_path: Path) -> None:
    (model / "config.json").unlink()
    assert "no config.json" in refusal(NAME, tmp_path / "cache")


@pytest.mark.parametrize("name", ["owner/..", "-owner/name", "owner/na me", "owner/name.git"])
def test_a_name_that_no_hub_has(name: str, hub: FakeHub, tmp_path: Path) -> None:
    assert "not a valid model name on the hub" in refusal(name, tmp_path / "cache")


def test_a_full_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "move", full)
    assert f"no disk space is left for it in {tmp_path / 'cache'}" in refusal(
        NAME, tmp_path / "cache"
    )


def test_a_cache_that_is_a_file(model: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    assert "it cannot be written" in refusal(NAME, tmp_path / "cache")


@pytest.mark.parametrize("process", ["worker", "api"])
def test_the_last_line_of_a_process_says_why(process: str, tmp_path: Path) -> None:
    settings = {
        "HF_ENDPOINT": "http://127.0.0.1:1",
        "MILLPOND_MODEL": NAME,
        "MILLPOND_CACHE_DIR": str(tmp_path),
    }
    ended = subprocess.run(
        [sys.executable, "-m", process],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert line.startswith(
        f"millpond {process}: model {NAME}: the hub at http://127.0.0.1:1 cannot"
    )


def refusal(name: str, cache_dir: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        find_preset(name, cache_dir)
    message = str(caught.value)
    assert "\n" not in message, "a child's last line says it"
    return message


@pytest.mark.parametrize("source", ["a/b", "owner/name-1.5B"])
def test_hub_names(source: str) -> None:
    assert hub_files.is_hub_name(source)


@pytest.mark.parametrize("source", ["", "a", "/a", "a/", "./a", "../a", "~/a", "a/b/c"])
def test_other_names(source: str) -> None:
    assert not hub_files.is_hub_name(source)
