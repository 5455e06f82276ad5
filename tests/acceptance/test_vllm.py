"""``millpond up --engine vllm``: vLLM as a child of the worker, with a stand-in for the command itself."""

import contextlib
import json
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from millpond.models.tokenization import ByteTokenizer
from tests.acceptance.conftest import Up, run_command, until
from tests.knobs import VLLM

ROOT = Path(__file__).parents[2]
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


# Of a minute each, for one job: a vLLM on a busy machine takes minutes to come back.
MOST_WAITS = 10


class Jobs:
    """The same jobs, put to the API as often as one likes."""

    def __init__(self, http: httpx.AsyncClient, number: int) -> None:
        self.http = http
        self.bodies = [
            {"prompt": f"Question {i}:", "raw": True, "seed": i, "max_tokens": OUTPUT_TOKENS}
            | {"ignore_eos": True}
            for i in range(number)
        ]

    async def submit(self) -> list[str]:
        answer = (await self.http.post("/v1/jobs/bulk", json={"jobs": self.bodies})).json()
        return [job["id"] for job in answer["jobs"]]

    async def texts(self, ids: list[str]) -> list[str]:
        """Of all jobs, which have succeeded at their first attempt."""
        found = []
        for id in ids:
            job: dict[str, Any] = {}
            for _ in range(MOST_WAITS):
                job = (await self.http.get(f"/v1/jobs/{id}", params={"wait": 60})).json()
                if "result" in job:
                    break
            result = job["result"]
            assert (job["status"], job["attempts"]) == ("succeeded", 1), job
            assert result["receipt"]["engine"] == "vllm"
            assert result["usage"]["completion_tokens"] == OUTPUT_TOKENS
            found.append(result["text"])
        return found

    async def succeeded(self) -> int:
        return int((await self.http.get("/v1/queue")).json()["done"]["succeeded"])


class Victims:
    """The children of a worker, killed one after the other."""

    def __init__(self, stack: Up) -> None:
        self._worker = psutil.Process(stack.children()["worker"].pid)
        self._killed: list[int] = []

    def living(self) -> psutil.Process | None:
        children = self._worker.children()
        return next((child for child in children if child.pid not in self._killed), None)

    async def kill_next(self) -> None:
        """Kill it, and see what it had started go with it."""
        child = await until(self.living)
        family = child.children(recursive=True)
        self._killed.append(child.pid)
        child.kill()
        await until(lambda: not any(map(_runs, family)), why="what it had started is gone")


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


async def killed_again_and_again(stack: Up, jobs: Jobs, kills: int) -> list[str]:
    """The texts of all jobs, of which some end between one kill and the next."""
    before, victims = await jobs.succeeded(), Victims(stack)
    ids = await jobs.submit()
    for kill in range(kills):
        wanted = before + 1 + kill * len(ids) // (kills + 1)

        async def gone_on(wanted: int = wanted) -> bool:
            return await jobs.succeeded() >= wanted

        await until(gone_on, 300.0, "rows end")
        await victims.kill_next()
    texts = await jobs.texts(ids)
    last = await until(victims.living)
    assert await stack.stop(signal.SIGINT) == 0
    assert not _runs(last)
    return texts


async def test_rows_outlive_the_child_that_generates_them(
    up: StartUp, model: Path, command: Path
) -> None:
    stack = await up(
        *("--engine", "vllm", "--model", str(model), "--set", f"vllm_command={command}"),
        *("--set", "vllm_args=--tensor-parallel-size 2", "--set", "slots=16", "--port", "0"),
    )
    async with httpx.AsyncClient(base_url=stack.about.api_url, timeout=70) as http:
        jobs = Jobs(http, 60)
        undisturbed = await jobs.texts(await jobs.submit())
        assert await killed_again_and_again(stack, jobs, kills=4) == undisturbed
    assert "'--tensor-parallel-size', '2'" in (stack.data / "vllm-default.log").read_text()


async def test_a_child_that_falls_silent_is_killed_and_its_rows_go_on(
    up: StartUp, model: Path, command: Path
) -> None:
    stack = await up(
        *("--engine", "vllm", "--model", str(model), "--set", f"vllm_command={command}"),
        *("--set", "vllm_silence_s=0.5", "--set", "slots=16", "--port", "0"),
    )
    async with httpx.AsyncClient(base_url=stack.about.api_url, timeout=70) as http:
        jobs = Jobs(http, 40)
        ids = await jobs.submit()
        await until(jobs.succeeded, why="rows end, and the next ones run")
        child = Victims(stack).living()
        assert child is not None
        child.suspend()
        await until(lambda: not _runs(child), why="it is killed")
        await jobs.texts(ids)


@pytest.mark.skipif(VLLM is None, reason="MILLPOND_VLLM names no command vllm to be tried")
async def test_rows_outlive_vllm_itself(up: StartUp) -> None:
    """Its texts depend on the batch, so they are not compared."""
    stack = await up(
        *("--engine", "vllm", "--model", "smollm2-135m", "--set", f"vllm_command={VLLM}"),
        *("--set", "slots=32", "--set", "vllm_args=--enforce-eager", "--port", "0"),
        within_s=300.0,
    )
    async with httpx.AsyncClient(base_url=stack.about.api_url, timeout=70) as http:
        await killed_again_and_again(stack, Jobs(http, 500), kills=10)


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
