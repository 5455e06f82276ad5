"""The commands of docs/operations.md that save a stack's data and bring it back."""

import asyncio
import os
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import pytest

from millpond.local.server import free_port
from tests.acceptance.conftest import MILLPOND, Up
from tests.conftest import skip_or_fail

PAGE = Path(__file__).parents[2] / "docs/operations.md"
PORT = "6399"


@pytest.fixture(scope="module")
def blocks() -> list[str]:
    """The shell commands of the section: save, load, start."""
    section = PAGE.read_text().split("## Backup and restore")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


async def shell(commands: str, cwd: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *("sh", "-e", "-c", commands),
        cwd=cwd,
        env={**os.environ, "PATH": f"{MILLPOND.parent}:{os.environ['PATH']}"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, out.decode()


async def test_a_snapshot_of_a_running_stack_comes_back(
    up: Callable[..., Awaitable[Up]], blocks: list[str], tmp_path: Path
) -> None:
    if not (shutil.which("redis-cli") and shutil.which("redis-server")):
        skip_or_fail("redis-cli and redis-server are not installed")
    save, load, start = blocks
    assert start.strip() == "millpond up --data restored"
    simulated = ("--engine", "simulated", "--port", "0")
    stack = await up(*simulated)
    async with httpx.AsyncClient(base_url=stack.about.api_url) as http:
        done = (await http.post("/v1/jobs", json={"prompt": "before", "max_tokens": 8})).json()[
            "id"
        ]
        before = (await http.get(f"/v1/jobs/{done}?wait=20")).json()
        assert before["status"] == "succeeded"
        worker = stack.children()["worker"]
        worker.suspend()
        later = (await http.post("/v1/jobs", json={"prompt": "later", "max_tokens": 8})).json()[
            "id"
        ]
        await shell(save, tmp_path)
        worker.resume()
    assert await stack.stop() == 0

    await shell(load.replace(PORT, str(free_port())), tmp_path)
    restored = await up(*simulated, data=tmp_path / "restored")
    async with httpx.AsyncClient(base_url=restored.about.api_url) as http:
        assert (await http.get(f"/v1/jobs/{done}")).json() == before
        ended = (await http.get(f"/v1/jobs/{later}?wait=20")).json()
        assert ended["status"] == "succeeded"
        submitted = await http.post("/v1/jobs", json={"prompt": "after", "max_tokens": 8})
        assert submitted.status_code == 202
