"""The README's first steps, word for word, on a machine where the usual ports are taken."""

import asyncio
import contextlib
import os
import re
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson

from millpond.local.stack import REDIS_PORT
from millpond.settings import Settings
from tests.acceptance.conftest import Up, run_command, until

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
Start = Callable[..., Awaitable[Up]]


def blocks(title: str) -> list[str]:
    section = README.split(f"\n## {title}\n")[1].split("\n## ")[0]
    found = re.findall(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in ("", "python")]


async def run(*command: str, cwd: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.PIPE, env={**os.environ}
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60.0)
    assert process.returncode == 0
    return out.decode()


async def test_the_first_steps_work_when_the_usual_ports_are_taken(
    up: Start, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as files:
        for port in (REDIS_PORT, Settings.model_fields["port"].default):
            taken = files.enter_context(contextlib.closing(socket.socket()))
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):  # another program has it, which is as good
                taken.bind(("127.0.0.1", port))
                taken.listen()
        stack = await up("--engine", "simulated")
        assert str(REDIS_PORT) not in stack.about.redis_url

        (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
        submit, read = blocks("A first job")
        accepted = orjson.loads(await run("bash", "-c", submit, cwd=tmp_path))
        address = next(line for line in submit.splitlines() if line.startswith("API="))
        [named] = set(re.findall(r"jobs/(\w{20,})", read))
        followed = f"{address}\n{read.replace(named, accepted['id'])}"
        out = await run("bash", "-c", followed, cwd=tmp_path)
        assert '"status":"succeeded"' in out
        assert "event: finished" in out

        completion, structured, vote = blocks("With OpenAI's client")
        assert len(await run(sys.executable, "-c", completion, cwd=tmp_path)) > 10
        asked = await run("bash", "-c", f"{address}\n{structured}", cwd=tmp_path)
        assert orjson.loads(asked)["status"] == "queued"
        assert await run("bash", "-c", vote, cwd=tmp_path)

        subscriber, client = blocks("A first subscriber")
        listening = await asyncio.create_subprocess_exec(
            *(sys.executable, "-u", "-c", subscriber),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
        )
        assert listening.stdout is not None
        heard = asyncio.create_task(listening.stdout.readline())

        async def one_is_heard() -> bool:
            code, _, _ = await run_command("submit", "hi", "--wait", cwd=tmp_path)
            return code == 0 and heard.done()

        await until(one_is_heard, 30.0, "the subscriber hears of a job")
        assert b" succeeded " in heard.result()
        listening.kill()
        await listening.communicate()
        assert len(await run(sys.executable, "-c", client, cwd=tmp_path)) > 10


async def test_the_demo_shows_every_kind_of_client() -> None:
    """`make demo` with a simulated engine, which is faster."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.demo"),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "MILLPOND_ENGINE": "simulated"},
    )
    out, _ = await asyncio.wait_for(process.communicate(), 90.0)
    assert process.returncode == 0, out.decode()
    for shown in ("Live over SSE", "A Redis subscriber heard on", "windowed batch"):
        assert shown in out.decode()
    assert "StackEvent" not in out.decode()
