"""A base model, which has no chat template: raw prompts are served, chats are refused at submit.

The model is SmolLM2 with its template taken away, behind the real command: server, worker, API.
"""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from millpond.client import Client
from millpond.errors import InvalidRequestError
from millpond.messages import JobRequest, JobStatus
from millpond.models.presets import PRESETS, find_preset
from tests.acceptance.conftest import Up
from tests.acceptance.conftest import up as up  # the fixture
from worker.weights import prepare_model

pytestmark = pytest.mark.model

HELLO = [{"role": "user", "content": "hello"}]
NO_CHAT = "is a base model, which has no chat template"


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    source = prepare_model(PRESETS["smollm2-135m"], Path.home() / ".cache" / "millpond")
    folder = tmp_path / "base"
    folder.mkdir()
    for file in source.iterdir():
        if file.name not in ("chat_template.jinja", "tokenizer_config.json"):
            (folder / file.name).symlink_to(file)
    config = json.loads((source / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


async def test_a_base_model_continues_text_and_answers_no_chat(
    base_model: Path, up: Callable[..., Awaitable[Up]], tmp_path: Path
) -> None:
    running = await up("--model", str(base_model), "--port", "0")
    raw = {"prompt": "The capital of France is", "raw": True, "max_tokens": 5, "temperature": 0}
    async with httpx.AsyncClient(base_url=running.about.api_url, timeout=60) as http:

        async def post(path: str, **body: Any) -> httpx.Response:
            return await http.post(path, json=body)

        accepted = await post("/v1/jobs", **raw)
        done = (await http.get(accepted.headers["Location"], params={"wait": 50})).json()
        assert done["status"] == "succeeded"
        assert "Paris" in done["result"]["text"]
        completed = await post("/v1/completions", model="base", prompt=raw["prompt"], max_tokens=5)
        assert completed.status_code == 200, completed.text

        for fields in ({"prompt": "hello"}, {"messages": HELLO}):
            refused = await post("/v1/jobs", **fields)
            assert refused.status_code == 422
            assert next(iter(fields)) in refused.text
            assert NO_CHAT in refused.text
        chat = await post("/v1/chat/completions", model="base", messages=HELLO)
        assert 400 <= chat.status_code < 500
        assert NO_CHAT in chat.text
        bulk = await post("/v1/jobs/bulk", jobs=[raw, {"messages": HELLO}])
        assert (bulk.json()["accepted"], bulk.json()["refused"]) == (1, 1)

    preset = find_preset(str(base_model), tmp_path)
    async with Client(running.about.redis_url, preset=preset) as client:
        with pytest.raises(InvalidRequestError, match=NO_CHAT):
            await client.submit("hello")
        result = await client.generate(JobRequest.model_validate(raw), timeout_s=50)
        assert result.status is JobStatus.SUCCEEDED
    # A client that does not know the model learns it from the result.
    async with Client(running.about.redis_url) as client:
        result = await client.generate("hello", timeout_s=50)
    assert result.status is JobStatus.FAILED
    assert result.error is not None
    assert result.error.code == "invalid_request"
    assert NO_CHAT in result.error.message
