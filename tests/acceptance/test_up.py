"""``millpond up`` and the client commands, as a person would use them."""

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import orjson
import psutil

from tests.acceptance.conftest import Up, run_command, until

SIMULATED = ("--engine", "simulated", "--port", "0", "--set", "grace_s=2")
Start = Callable[..., Awaitable[Up]]


async def test_a_job_over_http_and_everything_gone_after_ctrl_c(up: Start) -> None:
    stack = await up(*SIMULATED)
    children = stack.children()
    assert set(children) == {"redis", "worker", "api", "background"}
    async with httpx.AsyncClient(base_url=stack.about.api_url) as http:
        accepted = await http.post("/v1/jobs", json={"prompt": "hello", "max_tokens": 20})
        assert accepted.status_code == 202
        job = (await http.get(accepted.headers["Location"], params={"wait": 20})).json()
    assert job["status"] == "succeeded"
    assert job["result"]["text"]
    files = [stack.data / "redis", *(stack.data / "redis").rglob("*")]
    assert any(path.suffix == ".aof" for path in files)
    assert all(path.stat().st_mode & 0o077 == 0 for path in files), "prompts lie open"
    assert await stack.stop(signal.SIGINT) == 0
    assert stack.printed.splitlines()[-1].endswith("stopped")
    assert not any(child.is_running() for child in children.values())
    assert not (stack.data / "stack.json").exists()


async def test_children_that_are_killed_come_back_and_nothing_is_lost(up: Start) -> None:
    stack = await up(
        *SIMULATED, "--set", "lease_s=1", "--set", "heartbeat_s=0.3", "--fsync", "always"
    )
    async with httpx.AsyncClient(base_url=stack.about.api_url, timeout=30) as http:
        ids = []
        for i in range(60):
            body = {"prompt": f"question {i}", "max_tokens": 200, "ignore_eos": True}
            answer = await http.post("/v1/jobs", json=body)
            assert answer.status_code == 202
            ids.append(answer.json()["id"])
        for name in ("worker", "redis", "api", "background"):
            victim = stack.children()[name]
            victim.kill()
            await until(
                lambda name=name, pid=victim.pid: stack.restarted(name, pid),
                20.0,
                f"{name} is started again",
            )
        assert "was ended by SIGKILL; starting it again in 0.2 s" in stack.printed
        await until(lambda: stack.printed.count("back after") == 4, 20.0, "all are back")

        async def ended(id: str) -> str | None:
            try:
                answer = await http.get(f"/v1/jobs/{id}")
            except httpx.HTTPError:
                return None
            status = answer.json().get("status")
            return status if status not in ("queued", "running", None) else None

        statuses = [
            await until(lambda id=id: ended(id), 60.0, f"job {id} ends")  # type: ignore[misc]
            for id in ids
        ]
    assert statuses == ["succeeded"] * 60


async def test_jobs_survive_a_restart_of_the_whole_stack(up: Start, tmp_path: Path) -> None:
    data = tmp_path / "kept"
    stack = await up(*SIMULATED, data=data)
    code, id, _ = await run_command("submit", "hello", "--data", str(data), cwd=tmp_path)
    assert code == 0
    await run_command("result", id.strip(), "--wait", "20", "--data", str(data), cwd=tmp_path)
    assert await stack.stop() == 0
    await up(*SIMULATED, data=data)
    code, out, _ = await run_command("result", id.strip(), "--data", str(data), cwd=tmp_path)
    assert code == 0
    assert orjson.loads(out)["status"] == "succeeded"


async def test_client_commands(up: Start, tmp_path: Path) -> None:
    stack = await up(*SIMULATED)
    data = ("--data", str(stack.data))

    code, out, _ = await run_command("submit", "hi", "--wait", "--json", *data, cwd=tmp_path)
    assert code == 0
    result = orjson.loads(out)
    assert result["status"] == "succeeded"

    code, out, _ = await run_command("watch", result["id"], *data, cwd=tmp_path)
    assert code == 0
    assert out.strip() == result["text"].strip()

    code, out, _ = await run_command("cancel", result["id"], *data, cwd=tmp_path)
    assert (code, out.strip()) == (0, "succeeded")

    code, out, _ = await run_command("queue", *data, cwd=tmp_path)
    assert code == 0
    assert "simulated" in out

    code, _, err = await run_command("result", "nosuchjob", *data, cwd=tmp_path)
    assert code == 2
    assert "nosuchjob" in err
    assert "Traceback" not in err


async def test_mistakes_are_told_in_one_line(tmp_path: Path, up: Start) -> None:
    for arguments, words in (
        (("up", "--model", "no-such-model"), "not a preset"),
        (("up", "--engine", "warp"), "engine"),
        (("up", "--set", "lease_s=-1"), "lease_s"),
        (("up", "--set", "nonsense=1"), "nonsense"),
        (("submit", "hi", "--max-tokens", "0"), "max_tokens"),
        (("submit", "hi", "--redis-url", "redis://127.0.0.1:1"), "Redis cannot serve"),
    ):
        code, _, err = await run_command(*arguments, cwd=tmp_path)
        assert code == 2, (arguments, err)
        assert words in err
        assert "Traceback" not in err
    stack = await up(*SIMULATED)
    code, _, err = await run_command("up", *SIMULATED, "--data", str(stack.data), cwd=tmp_path)
    assert code == 2
    assert "another stack" in err


async def test_killing_the_stack_itself_leaves_no_child(up: Start) -> None:
    stack = await up(*SIMULATED)
    children = list(stack.children().values())
    stack.process.kill()
    await stack.process.wait()
    await until(lambda: not any(_alive(child) for child in children), 20.0, "the children end")


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_the_users_own_server(up: Start, redis_server, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    stack = await up(*SIMULATED, "--redis-url", redis_server.url, "--queue", "own")
    assert set(stack.children()) == {"worker", "api", "background"}
    code, out, _ = await run_command(
        *("submit", "hi", "--wait", "--redis-url", redis_server.url, "--queue", "own"),
        cwd=tmp_path,
    )
    assert code == 0, out
    assert redis_server.pid is not None
    assert await stack.stop() == 0
    assert psutil.pid_exists(redis_server.pid), "a server that is not ours is left alone"


async def test_two_models_behind_one_api(up: Start) -> None:
    models = ("simulated", "vibethinker-1.5b")
    stack = await up(*SIMULATED, "--model", models[0], "--model", models[1])

    assert len(stack.children_called("worker")) == 2
    async with httpx.AsyncClient(base_url=stack.about.api_url, timeout=30) as http:
        await until(lambda: _all_ready(http), 20.0, "the API knows both workers")
        for model in models:
            body = {"prompt": "hello", "max_tokens": 5, "model": model}
            accepted = await http.post("/v1/jobs", json=body)
            job = (await http.get(accepted.headers["Location"], params={"wait": 20})).json()
            assert job["result"]["receipt"]["model"] == model
    forget = ("models", "forget", models[0], "--data", str(stack.data))
    code, _, err = await run_command(*forget, cwd=stack.data)
    assert (code, "has workers: 1" in err) == (2, True)
    assert await stack.stop(signal.SIGINT) == 0


async def test_a_worker_on_each_card(up: Start, tmp_path: Path) -> None:
    stack = await up(*SIMULATED, "--devices", "0,2")
    here = ("--data", str(stack.data))
    code, out, _ = await run_command("queue", *here, cwd=tmp_path, columns=160)
    assert code == 0
    assert sorted(
        line[line.index("card") :][:6] for line in out.splitlines() if "card" in line
    ) == [
        "card 0",
        "card 2",
    ]
    for child in stack.children_called("worker"):
        assert child.environ()["MILLPOND_VISIBLE_DEVICES"] in ("0", "2")
    for given in ("0,0", "0,1;2", ""):
        code, _, err = await run_command("up", *SIMULATED, "--devices", given, cwd=tmp_path)
        assert (code, "different cards" in err) == (2, True), err
    assert await stack.stop(signal.SIGINT) == 0


async def _all_ready(http: httpx.AsyncClient) -> bool:
    listed = (await http.get("/v1/models")).json()["data"]
    return len(listed) == 2 and all(model["ready"] for model in listed)
