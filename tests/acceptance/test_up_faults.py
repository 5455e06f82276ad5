"""What ``millpond up`` says and does when something is wrong: nobody should have to read a log first."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import orjson
import pytest

from millpond.settings import Settings
from tests.acceptance.conftest import Up, run_command, until

SIMULATED = ("--engine", "simulated", "--port", "0")
Start = Callable[..., Awaitable[Up]]


async def test_a_worker_that_is_stopped_is_told_of_and_started_again(up: Start) -> None:
    stack = await up(*SIMULATED, "--set", "liveness_timeout_s=6", "--set", "heartbeat_s=0.2")
    worker = stack.children()["worker"]
    worker.suspend()
    await until(lambda: "worker silent for 5 s" in stack.printed, 10.0, "its silence is told")
    await until(lambda: stack.restarted("worker", worker.pid), 15.0, "it is started again")
    await until(lambda: "worker back after" in stack.printed, 15.0, "its return is told")


async def test_a_worker_that_goes_on_in_time_is_left_alone(up: Start) -> None:
    stack = await up(*SIMULATED, "--set", "heartbeat_s=0.2")
    worker = stack.children()["worker"]
    worker.suspend()
    await until(lambda: "worker silent for 5 s" in stack.printed, 10.0, "its silence is told")
    worker.resume()
    await until(lambda: "worker is heard of again" in stack.printed, 10.0, "it is heard")
    assert stack.children()["worker"].pid == worker.pid


async def test_a_redis_that_cannot_be_reached_is_told_within_five_seconds(up: Start) -> None:
    stack = await up(*SIMULATED, "--redis-url", "redis://127.0.0.1:1", ready=False)
    await until(lambda: "starting" in stack.printed, 20.0, "it begins")
    await until(lambda: "redis cannot be reached" in stack.printed, 5.0, "the cause is told")
    assert "Connect call failed" in stack.printed
    assert await stack.stop() == 0


async def test_a_child_that_cannot_start_is_told_with_its_reason(up: Start) -> None:
    stack = await up(*SIMULATED, "--set", 'simulated={"warp": 9}', ready=False)
    assert await asyncio.wait_for(stack.process.wait(), 40.0) == 2
    assert "worker ended with status 1" in stack.printed
    assert "the worker does not stay up" in stack.printed
    assert stack.printed.count("warp") >= 3
    assert "Traceback" not in stack.printed


async def test_ctrl_c_says_what_it_waits_for_and_a_second_one_gives_it_back(up: Start) -> None:
    slow = ("--set", 'simulated={"costs": {"decode_s_per_step": 0.1}}', "--set", "grace_s=20")
    stack = await up(*SIMULATED, *slow)
    async with httpx.AsyncClient(base_url=stack.about.api_url or "") as http:
        ids = []
        for i in range(3):
            body = {"prompt": f"long {i}", "max_tokens": 5_000, "ignore_eos": True}
            ids.append((await http.post("/v1/jobs", json=body)).json()["id"])

        async def all_run() -> bool:
            seen = [(await http.get(f"/v1/jobs/{id}")).json()["status"] for id in ids]
            return set(seen) == {"running"}

        await until(all_run, 20.0, "the jobs run")
    stack.process.send_signal(signal.SIGINT)
    await until(lambda: "waiting for 3 rows, at most 20 s" in stack.printed, 5.0, "it is said")
    began = asyncio.get_running_loop().time()
    stack.process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(stack.process.wait(), 15.0) == 0
    assert asyncio.get_running_loop().time() - began < 5.0, "not the time of the rows"
    log = (stack.data / "worker.log").read_text().splitlines()
    assert orjson.loads(log[-1])["released"] == 3


def _taken(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


async def test_a_port_that_was_asked_for_and_is_taken_is_an_error(tmp_path: Path) -> None:
    with contextlib.closing(_taken(0)) as listener:
        port = str(listener.getsockname()[1])
        code, _, err = await run_command(
            *("up", "--engine", "simulated", "--port", port), cwd=tmp_path
        )
    assert code == 2
    assert f"port {port} on 127.0.0.1 is taken" in err


async def test_the_default_port_moves_and_says_so(up: Start) -> None:
    default = Settings.model_fields["port"].default
    with contextlib.ExitStack() as files:
        with contextlib.suppress(OSError):  # then another program has it, which is as good
            files.enter_context(contextlib.closing(_taken(default)))
        stack = await up("--engine", "simulated")
        assert f"port {default} is taken" in stack.printed
        assert stack.about.api_url != f"http://127.0.0.1:{default}"
        async with httpx.AsyncClient(base_url=stack.about.api_url or "") as http:
            assert (await http.get("/readyz")).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--host", "192.0.2.1"), "host: cannot listen on 192.0.2.1"),
        (("--host", "no such host"), "host: 'no such host' is no address"),
        (("--redis-url", "foo://x"), "redis_url: "),
        (("--redis-url", "redis://127.0.0.1:nonsense"), "redis_url: "),
    ],
)
async def test_addresses_that_cannot_be(
    arguments: tuple[str, str], words: str, tmp_path: Path
) -> None:
    code, _, err = await run_command("up", "--engine", "simulated", *arguments, cwd=tmp_path)
    assert code == 2, err
    assert words in err
    assert "Traceback" not in err


async def test_events_as_json_where_nobody_looks(up: Start) -> None:
    stack = await up(*SIMULATED, as_json=True)
    events = [orjson.loads(line) for line in stack.printed.splitlines()]
    # The background worker is not waited for.
    told = {event["source"] for event in events} - {"background"}
    assert told == {"stack", "redis", "worker", "api"}
    assert events[-1]["message"].startswith(f"API at {stack.about.api_url}")
