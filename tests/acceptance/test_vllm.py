"""``millpond up --engine vllm``: vLLM as a child of the worker, with a stand-in for the command itself."""

import json
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import psutil
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from millpond.models.tokenization import ByteTokenizer
from tests.acceptance.conftest import Up, run_command, until

ROOT = Path(__file__).parents[2]
JOBS = 60
KILLS = 4
OUTPUT_TOKENS = 60

StartUp = Callable[..., Awaitable[Up]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model without weights, whose tokens are bytes as the stand-in's are."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    alphabet = _alphabet()
    vocabulary = {alphabet[byte]: byte for byte in range(256)} | {"<end>": ByteTokenizer.EOS}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"model_type": "llama", "max_position_embeddings": 4096, "eos_token_id": 256}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    return folder


def _alphabet() -> list[str]:
    """The character by which byte-level BPE writes each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte if byte in printable else 256 + others.index(byte)) for byte in range(256)]


@pytest.fixture
def command(tmp_path: Path) -> Path:
    script = tmp_path / "vllm"
    stand_in = f"{sys.executable} -m tests.acceptance.vllm_stand_in"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {stand_in} "$@"\n')
    script.chmod(0o700)
    return script


class Jobs:
    """The same jobs, put to the API as often as one likes."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.bodies = [
            {"prompt": f"question {i}", "raw": True, "seed": i, "max_tokens": OUTPUT_TOKENS}
            | {"ignore_eos": True}
            for i in range(JOBS)
        ]

    async def submit(self) -> list[str]:
        answer = (await self.http.post("/v1/jobs/bulk", json={"jobs": self.bodies})).json()
        return [job["id"] for job in answer["jobs"]]

    async def texts(self, ids: list[str]) -> list[str]:
        """Of all jobs, which have succeeded at their first attempt."""
        found = []
        for id in ids:
            job = (await self.http.get(f"/v1/jobs/{id}", params={"wait": 60})).json()
            result = job["result"]
            assert (job["status"], job["attempts"]) == ("succeeded", 1), job
            assert result["receipt"]["engine"] == "vllm"
            assert result["usage"]["completion_tokens"] == OUTPUT_TOKENS
            found.append(result["text"])
        return found

    async def succeeded(self) -> int:
        return int((await self.http.get("/v1/queue")).json()["done"]["succeeded"])


async def test_rows_outlive_the_child_that_generates_them(
    up: StartUp, model: Path, command: Path, tmp_path: Path
) -> None:
    stack = await up(
        *("--engine", "vllm", "--model", str(model), "--set", f"vllm_command={command}"),
        *("--set", "vllm_args=--tensor-parallel-size 2", "--set", "slots=16", "--port", "0"),
    )
    worker = psutil.Process(stack.children()["worker"].pid)
    killed: list[int] = []

    def child() -> psutil.Process | None:
        return next((c for c in worker.children() if c.pid not in killed), None)

    async with httpx.AsyncClient(base_url=stack.about.api_url, timeout=60) as http:
        jobs = Jobs(http)
        undisturbed = await jobs.texts(await jobs.submit())
        ids = await jobs.submit()
        for kill in range(KILLS):
            wanted = JOBS + kill * JOBS // 5 + 1

            async def gone_on(wanted: int = wanted) -> bool:
                return await jobs.succeeded() >= wanted

            await until(gone_on, 30.0, "rows end")
            running = await until(child)
            engine = int((tmp_path / "engine.pid").read_text())
            killed.append(running.pid)
            running.kill()
            await until(lambda engine=engine: not psutil.pid_exists(engine))  # type: ignore[misc]
        assert await jobs.texts(ids) == undisturbed
    assert "'--tensor-parallel-size', '2'" in (stack.data / "vllm-default.log").read_text()
    last = await until(child)
    assert await stack.stop(signal.SIGINT) == 0
    assert not psutil.pid_exists(last.pid)


async def test_a_child_that_does_not_stay_up_ends_the_stack_with_its_reason(
    up: StartUp, model: Path, command: Path
) -> None:
    stack = await up(
        *("--engine", "vllm", "--model", str(model), "--set", f"vllm_command={command}"),
        *("--set", "vllm_args=--break-down", "--port", "0"),
        ready=False,
    )
    assert await stack.process.wait() != 0
    assert "no such quantization" in stack.printed


async def test_mistakes_are_told_before_anything_starts(model: Path, tmp_path: Path) -> None:
    async def told(*arguments: str) -> str:
        code, _, err = await run_command(
            *("up", "--engine", "vllm", "--model", str(model), *arguments), cwd=tmp_path
        )
        assert code == 2
        return err

    assert "vllm_command" in await told("--set", "vllm_command=/no/such/vllm")
    assert "--quantization" in await told("--set", "weights=int8")
    assert "vllm_args" in await told("--set", "vllm_args='unclosed")
