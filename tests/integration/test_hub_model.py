"""A model by hub name behind the real command: its own sampling defaults, end tokens and context."""

import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from millpond.models.presets import PRESETS
from tests.acceptance.conftest import Up
from tests.acceptance.conftest import up as up  # the fixture
from tests.fake_hub import FakeHub, fake_hub
from worker.weights import prepare_model

pytestmark = pytest.mark.model

NAME = "owner/tiny"
CONTEXT_TOKENS = 512
GENERATION = {"do_sample": True, "temperature": 1.5, "top_k": 50, "eos_token_id": [0]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny model with random weights and SmolLM2's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path / "tiny"
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    source = prepare_model(PRESETS["smollm2-135m"], Path.home() / ".cache" / "millpond")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, folder / name)
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return folder


async def test_a_hub_name_serves_as_the_same_folder_does(
    model: Path,
    up: Callable[..., Awaitable[Up]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with fake_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("MILLPOND_CACHE_DIR", str(tmp_path / "cache"))
        await _refused(up, hub)
        hub.models[NAME] = model
        running = await up("--model", NAME, "--port", "0", data=tmp_path / "data")
        async with httpx.AsyncClient(base_url=running.about.api_url, timeout=60) as http:
            texts = [await _generate(http, seed=seed) for seed in (1, 2)]
            assert texts[0] != texts[1], "sampled by default, as its generation_config says"
            assert await _generate(http, seed=1) == texts[0]
            greedy = [await _generate(http, seed=seed, temperature=0) for seed in (1, 2)]
            assert greedy[0] == greedy[1]
            long = await http.post("/v1/jobs", json={"prompt": "a", "max_tokens": CONTEXT_TOKENS})
            assert long.status_code == 422
            assert f"limit of {CONTEXT_TOKENS // 2}" in long.text
        assert hub.fetched.count("model.safetensors") == 1


async def _refused(up: Callable[..., Awaitable[Up]], hub: FakeHub) -> None:
    ended = await up("--model", NAME, "--port", "0", ready=False)
    assert await ended.process.wait() == 2
    assert f"model {NAME}: the hub has no such model" in ended.printed


async def _generate(http: httpx.AsyncClient, **fields: Any) -> list[int]:
    body = {"prompt": "What?", "max_tokens": 12, "ignore_eos": True, "return_token_ids": True}
    accepted = await http.post("/v1/jobs", json={**body, **fields})
    assert accepted.status_code == 202, accepted.text
    done = (await http.get(accepted.headers["Location"], params={"wait": 50})).json()
    assert done["status"] == "succeeded", done
    token_ids: list[int] = done["result"]["token_ids"]
    assert len(token_ids) == 12
    return token_ids
