"""The client commands as a person or a script uses them, at 80 columns and without a stack."""

import asyncio
import os
import pty
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson
import psutil
import pytest

from tests.acceptance.conftest import MILLPOND, Up, run_command, until

Start = Callable[..., Awaitable[Up]]
SIMULATED = ("--engine", "simulated", "--port", "0")


class Terminal:
    """A command on a terminal of 80 columns: what it shows, and what is typed."""

    def __init__(self, process: asyncio.subprocess.Process, control: int) -> None:
        self.process = process
        self._control = control
        self.shown = ""
        asyncio.get_running_loop().add_reader(control, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._control, 65_536)
        except OSError:  # Linux says EIO when the other end is closed
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._control)
        self.shown += data.decode(errors="replace").replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self._control, text.encode())

    async def ended(self) -> int:
        status = await asyncio.wait_for(self.process.wait(), 20.0)
        asyncio.get_running_loop().remove_reader(self._control)
        os.close(self._control)
        return status


async def on_terminal(*arguments: str, cwd: Path) -> Terminal:
    control, terminal = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *(MILLPOND, *arguments),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            cwd=cwd,
            env={**os.environ, "COLUMNS": "80", "TERM": "xterm"},
            start_new_session=True,
        )
    finally:
        os.close(terminal)
    return Terminal(process, control)


@pytest.mark.parametrize(
    "arguments",
    [("queue",), ("submit", "hi"), ("keys", "list"), ("tenants", "list"), ("url",)],
)
async def test_without_a_stack_the_way_out_is_told(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    code, _, err = await run_command(*arguments, cwd=tmp_path)
    assert code == 2
    assert "no stack runs in data/; start one with millpond up, or give --redis-url" in err


async def test_ids_are_whole_at_eighty_columns(up: Start, tmp_path: Path) -> None:
    stack = await up(*SIMULATED)
    here = ("--data", str(stack.data))
    tenant = "a-tenant-with-a-name-of-32-chars"
    code, token, _ = await run_command(
        *("keys", "create", "--tenant", tenant, "--name", "for the nightly run", *here),
        *("--tokens-per-minute", "100000", "--unfinished-jobs", "300"),
        cwd=tmp_path,
    )
    assert code == 0
    code, out, _ = await run_command("keys", "list", *here, cwd=tmp_path, columns=80)
    key_id = token.split("_")[1]
    assert key_id in out
    assert all(word in out for word in ("created", "revoked", "tenant", "limits"))
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert (await run_command("keys", "revoke", key_id, *here, cwd=tmp_path))[0] == 0

    code, out, _ = await run_command("queue", *here, cwd=tmp_path, columns=80)
    worker = stack.children()["worker"].pid
    assert f"-{worker}-" in out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80


async def test_a_text_comes_as_it_is_written(up: Start, tmp_path: Path) -> None:
    slow = ("--set", 'simulated={"costs": {"decode_s_per_step": 0.05}}')
    stack = await up(*SIMULATED, *slow)
    arguments = ("submit", "hello there", "--wait", "--data", str(stack.data))
    plain, as_json = await asyncio.gather(
        run_command(*arguments, "--max-tokens", "20", "--seed", "1", cwd=tmp_path),
        run_command(*arguments, "--max-tokens", "20", "--seed", "1", "--json", cwd=tmp_path),
    )
    assert (plain[0], as_json[0]) == (0, 0)
    result = orjson.loads(as_json[1])
    assert plain[1] == result["text"] + "\n"
    assert plain[2] == ""

    terminal = await on_terminal(*arguments, "--max-tokens", "60", cwd=tmp_path)
    lengths: set[int] = set()

    def grows() -> bool:
        lengths.add(len(terminal.shown))
        return len(lengths) > 4

    await until(grows, 20.0, "the text comes in pieces")
    assert await terminal.ended() == 0


async def test_who_waits_is_told_why(up: Start, tmp_path: Path) -> None:
    slow = ("--set", 'simulated={"costs": {"decode_s_per_step": 0.2}}')
    stack = await up(*SIMULATED, *slow, "--set", "grace_s=0")
    worker = stack.children()["worker"]
    terminal = await on_terminal(
        *("submit", "hi", "--wait", "--max-tokens", "2000", "--data", str(stack.data)),
        cwd=tmp_path,
    )
    await until(lambda: len(terminal.shown) > 3, 20.0, "it runs")
    worker.suspend()
    await until(lambda: "worker is silent" in terminal.shown, 20.0, "the reason is told")
    worker.resume()
    terminal.process.send_signal(signal.SIGINT)
    await terminal.ended()


async def test_a_chat_remembers_and_an_interrupt_stops_an_answer(up: Start, tmp_path: Path) -> None:
    slow = ("--set", 'simulated={"costs": {"decode_s_per_step": 0.02}}')
    stack = await up(*SIMULATED, *slow, "--set", "grace_s=0")
    chat = await on_terminal("chat", "--max-tokens", "200", "--data", str(stack.data), cwd=tmp_path)
    here = ("--data", str(stack.data))
    await until(lambda: "> " in chat.shown, 20.0, "it asks")
    chat.type("hello\n")
    await until(lambda: chat.shown.count("> ") == 2, 60.0, "it answers and asks again")
    chat.type("and again\n")
    echoed = "and again\n"
    await until(lambda: chat.shown.partition(echoed)[2], 20.0, "it answers")
    chat.process.send_signal(signal.SIGINT)
    await until(lambda: chat.shown.count("> ") == 3, 20.0, "it asks for the third time")
    chat.type("\x04")
    assert await chat.ended() == 0

    async def cancelled() -> bool:
        _, out, _ = await run_command("queue", *here, cwd=tmp_path)
        return "running  0" in out and "cancelled 1" in out

    await until(cancelled, 20.0, "the interrupted answer's job is cancelled")


async def test_the_queue_is_watched(up: Start, tmp_path: Path) -> None:
    stack = await up(*SIMULATED)
    here = ("--data", str(stack.data))
    watching = await on_terminal("queue", "--watch", *here, cwd=tmp_path)
    await until(lambda: "succeeded 0" in watching.shown, 20.0, "it shows the queue")
    assert (await run_command("submit", "hi", "--wait", *here, cwd=tmp_path))[0] == 0
    await until(lambda: "succeeded 1" in watching.shown, 20.0, "it shows the new job")
    watching.process.send_signal(signal.SIGINT)
    await watching.ended()
    assert "Traceback" not in watching.shown


async def test_the_address_is_told_to_scripts(up: Start, tmp_path: Path) -> None:
    stack = await up(*SIMULATED)
    here = ("--data", str(stack.data))
    assert (await run_command("url", *here, cwd=tmp_path))[1].strip() == stack.about.api_url
    code, out, _ = await run_command("url", "--redis", *here, cwd=tmp_path)
    assert (code, out.strip()) == (0, stack.about.redis_url)
    assert psutil.pid_exists(stack.about.pid)


async def test_a_limit_is_told_before_anything_is_queued(up: Start, tmp_path: Path) -> None:
    stack = await up(*SIMULATED)
    code, _, err = await run_command(
        *("submit", "hi", "--max-tokens", "100000", "--data", str(stack.data)), cwd=tmp_path
    )
    assert code == 2
    assert "max_tokens: 100000 is above" in err


async def test_a_size_needs_its_unit(tmp_path: Path) -> None:
    code, _, err = await run_command("plan", "--memory", "16", cwd=tmp_path)
    assert code == 2
    assert "16GiB" in err
