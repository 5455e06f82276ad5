"""The API's tokenizer: there when the worker has put the files there, off the loop for long texts."""

import asyncio
import json
import threading
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from api.answers.errors import ModelNotReadyError
from api.requests import tokenizing
from api.requests.tokenizing import MAX_INLINE_CHARS, Tokenizing
from millpond.messages import JobRequest
from millpond.models.presets import PRESETS, Preset, model_folder
from millpond.models.prompts import PreparedPrompt
from millpond.settings import Settings


def put_model(folder: Path) -> None:
    """A model folder that appears whole, as a worker makes it."""
    work = folder.with_name("work")
    work.mkdir(parents=True)
    vocabulary = {"[UNK]": 0, "hello": 1, "world": 2}
    tokenizer = RustTokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(work / "tokenizer.json"))
    (work / "config.json").write_text(json.dumps({"vocab_size": 3}))
    work.rename(folder)


async def test_it_is_ready_once_the_folder_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "LOOK_AGAIN_S", 0.001)
    settings = Settings(model="smollm2-135m", cache_dir=tmp_path)
    service = Tokenizing(settings, settings.preset())
    loading = asyncio.create_task(service.load())
    request = JobRequest(prompt="hello world there", raw=True)
    try:
        assert not service.ready
        with pytest.raises(ModelNotReadyError):
            await service.prepare(request)

        put_model(tmp_path / "models" / "smollm2-135m")

        await asyncio.wait_for(loading, 10)
        assert service.ready
        assert (await service.prepare(request)).token_ids == [1, 2, 0]
    finally:
        loading.cancel()
        service.close()


async def test_a_broken_tokenizer_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = asyncio.Event()
    loop = asyncio.get_running_loop()
    load = tokenizing.FolderTokenizer

    def noticed(folder: Path) -> object:
        loop.call_soon_threadsafe(tried.set)
        return load(folder)

    monkeypatch.setattr(tokenizing, "FolderTokenizer", noticed)
    monkeypatch.setattr(tokenizing, "LOAD_AGAIN_S", 0.001)
    folder = tmp_path / "models" / "smollm2-135m"
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text("{")
    settings = Settings(model="smollm2-135m", cache_dir=tmp_path)
    service = Tokenizing(settings, settings.preset())
    loading = asyncio.create_task(service.load())
    try:
        await asyncio.wait_for(tried.wait(), 10)
        assert not service.ready
        folder.rename(tmp_path / "broken")
        put_model(folder)
        await asyncio.wait_for(loading, 10)
        assert service.ready
    finally:
        loading.cancel()
        service.close()


@pytest.mark.parametrize(
    ("request_", "inline"),
    [
        (JobRequest(prompt="a" * MAX_INLINE_CHARS), True),
        (JobRequest(prompt="a" * (MAX_INLINE_CHARS + 1)), False),
        (JobRequest(prompt="a", system="b" * MAX_INLINE_CHARS), False),
        (JobRequest(token_ids=[1] * (MAX_INLINE_CHARS + 1)), False),
    ],
)
async def test_long_texts_leave_the_event_loop(
    request_: JobRequest, inline: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings(engine="simulated", cache_dir=tmp_path)
    service = Tokenizing(settings, settings.preset())
    threads: list[str] = []

    def prepare_now(request: JobRequest) -> PreparedPrompt:
        threads.append(threading.current_thread().name)
        return PreparedPrompt([], 1, truncated=False)

    monkeypatch.setattr(service, "prepare_now", prepare_now)
    await service.prepare(request_)
    service.close()

    assert threads[0].startswith("tokenizing") is not inline


def test_the_folder_has_one_name_on_both_sides(tmp_path: Path) -> None:
    own = tmp_path / "my-model"
    own.mkdir()

    assert model_folder(Preset(name="my-model", source=str(own)), tmp_path) == own
    assert model_folder(PRESETS["smollm2-135m"], tmp_path) == tmp_path / "models" / "smollm2-135m"
    hub = Preset(name="owner/name", source="owner/name")
    assert model_folder(hub, tmp_path) == tmp_path / "models" / "owner--name"
