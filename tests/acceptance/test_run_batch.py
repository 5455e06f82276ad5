"""``millpond run-batch``: files in, files out, restartable."""

import asyncio
import fcntl
import os
import re
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from millpond.cli.batch_place import FOLDER_PREFIX
from millpond.local.stack import LOCK_FILE
from millpond.local.temporary_stack import sweep_folders
from tests.acceptance.conftest import MILLPOND, Up, run_command, until

Start = Callable[..., Awaitable[Up]]
LAST_LINE = re.compile(r"rows (\d+), failed (\d+), output tokens (\d+), ([\d.]+) s, ([\d.]+) tok/s")


def request(custom_id: str, **body: Any) -> bytes:
    body = {"messages": [{"role": "user", "content": f"q {custom_id}"}], "max_tokens": 8} | body
    fields = {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
    }
    return orjson.dumps(fields) + b"\n"


def outputs(path: Path) -> dict[str, Any]:
    return {row["custom_id"]: row for row in map(orjson.loads, path.read_bytes().splitlines())}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def totals(out: str) -> tuple[int, int, int]:
    found = LAST_LINE.fullmatch(out.strip().splitlines()[-1])
    assert found is not None, out
    return int(found[1]), int(found[2]), int(found[3])


async def test_rows_in_rows_out(tmp_path: Path) -> None:
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [
        request(f"r{i}", ignore_eos=True, max_tokens=i % 7 + 1, return_token_ids=i % 2 == 0)
        for i in range(50)
    ]
    source.write_bytes(b"".join(rows))
    arguments = ("run-batch", "-i", str(source), "-o", str(sink), "--engine", "simulated")
    code, out, err = await run_command(*arguments, cwd=tmp_path)
    assert code == 0, err
    expected_tokens = sum(i % 7 + 1 for i in range(50))
    assert totals(out) == (50, 0, expected_tokens)
    done = outputs(sink)
    assert len(done) == 50
    for i in range(50):
        body = done[f"r{i}"]["response"]["body"]
        assert body["usage"]["completion_tokens"] == i % 7 + 1
        assert ("token_ids" in body["choices"][0]) is (i % 2 == 0)
    assert names(tmp_path) == ["in.jsonl", "out.jsonl"]

    code, out, err = await run_command(*arguments, cwd=tmp_path)
    assert code == 0
    assert totals(out)[0] == 0
    assert "50 of 50 rows are done already" in err
    assert outputs(sink) == done


async def test_bad_lines_fail_alone(tmp_path: Path) -> None:
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    too_long = request("long", messages=[{"role": "user", "content": "x" * 100_000}])
    source.write_bytes(request("a") + b"{nonsense\n" + request("b", max_tokens=-1) + too_long)
    code, out, _ = await run_command(
        *("run-batch", "-i", str(source), "-o", str(sink), "--engine", "simulated"), cwd=tmp_path
    )
    assert code == 1
    assert totals(out)[:2] == (4, 3)
    done = outputs(sink)
    assert done["a"]["response"]["status_code"] == 200
    assert done[None]["error"]["message"].startswith("line 2: ")  # type: ignore[index]
    assert "max_tokens" in done["b"]["error"]["message"]
    assert done["long"]["error"]["code"] == "prompt_too_long"
    assert done["long"]["error"]["line"] == 4


async def test_a_killed_run_is_taken_up_where_it_stopped(tmp_path: Path) -> None:
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = 300
    source.write_bytes(
        b"".join(request(f"r{i}", ignore_eos=True, max_tokens=60) for i in range(rows))
    )
    arguments = ("run-batch", "-i", str(source), "-o", str(sink), "--engine", "simulated")
    process = await asyncio.create_subprocess_exec(
        *(MILLPOND, *arguments),
        cwd=tmp_path,
        env={**os.environ},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await until(lambda: sink.exists() and len(sink.read_bytes().splitlines()) > 20, 60.0)
    children = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await until(lambda: not any(c.is_running() for c in children), 20.0, "the children end")
    finished_before = len(sink.read_bytes().splitlines())
    assert finished_before < rows
    code, out, err = await run_command(*arguments, cwd=tmp_path)
    assert code == 0, err
    assert totals(out)[0] <= rows - 20
    assert set(outputs(sink)) == {f"r{i}" for i in range(rows)}
    assert len(sink.read_bytes().splitlines()) == rows


async def test_the_model_is_the_one_that_wrote_it(up: Start, tmp_path: Path) -> None:
    stack = await up("--engine", "simulated", "--port", "0")
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(request("plain") + request("asks", model="smollm2-135m"))
    arguments = ("run-batch", "-i", str(source), "-o", str(sink))
    given = ("--redis-url", stack.about.redis_url)
    code, out, _ = await run_command(*arguments, *given, cwd=tmp_path)
    assert code == 1
    assert totals(out)[:2] == (2, 1)
    done = outputs(sink)
    assert done["plain"]["response"]["body"]["model"] == "simulated"
    assert done["asks"]["error"]["code"] == "unknown_model"
    assert "smollm2-135m" in done["asks"]["error"]["message"]

    code, _, err = await run_command(*arguments, *given, "--any-model", cwd=tmp_path)
    assert code == 0, err
    assert outputs(sink)["asks"]["response"]["body"]["model"] == "simulated"


async def test_the_running_stack_is_used_if_it_fits(up: Start, tmp_path: Path) -> None:
    stack = await up("--engine", "simulated", "--port", "0")
    source = tmp_path / "in.jsonl"
    source.write_bytes(request("a"))
    here = ("run-batch", "-i", str(source), "--engine", "simulated", "--data", str(stack.data))
    code, _, err = await run_command(*here, "-o", str(tmp_path / "out.jsonl"), cwd=tmp_path)
    assert code == 0, err
    assert "Using the stack that runs in" in err
    other = ("--set", 'simulated={"tokens_per_step": 2}', "-o", str(tmp_path / "other.jsonl"))
    code, _, err = await run_command(*here, *other, cwd=tmp_path)
    assert code == 0, err
    assert "Using the stack" not in err, "its texts could be others"


async def test_a_finished_file_with_a_bad_line_does_nothing_again(tmp_path: Path) -> None:
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(request("a") + b"{nonsense\n")
    arguments = ("run-batch", "-i", str(source), "-o", str(sink), "--engine", "simulated")
    code, out, _ = await run_command(*arguments, cwd=tmp_path)
    assert (code, totals(out)[:2]) == (1, (2, 1))
    before = outputs(sink)
    code, out, err = await run_command(*arguments, cwd=tmp_path)
    assert (code, totals(out)[:2]) == (1, (0, 0))
    assert "line 2:" in err
    assert outputs(sink) == before


async def test_an_output_without_a_folder_is_refused_before_anything_starts(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(request("a"))
    code, _, err = await run_command(
        *("run-batch", "-i", str(source), "-o", "nowhere/out.jsonl"), cwd=tmp_path
    )
    assert code == 2
    assert "there is no folder nowhere" in err
    assert "Traceback" not in err


def test_what_a_killed_run_left_behind_is_swept(tmp_path: Path) -> None:
    dead, alive, new = (tmp_path / f"{FOLDER_PREFIX}{n}" for n in ("dead", "alive", "new"))
    for folder in (dead, alive, new):
        folder.mkdir()
    (dead / LOCK_FILE).touch()
    with (alive / LOCK_FILE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep_folders(tmp_path, FOLDER_PREFIX)
    assert names(tmp_path) == [alive.name, new.name]


@pytest.mark.model
async def test_the_real_model_answers(tmp_path: Path) -> None:
    source, sink = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    france = [{"role": "user", "content": "What is the capital of France?"}]
    source.write_bytes(
        request("france", messages=france, max_tokens=20, temperature=0)
        + request("other", max_tokens=5, ignore_eos=True, return_token_ids=True)
    )
    code, out, err = await run_command(
        *("run-batch", "-i", str(source), "-o", str(sink), "--dtype", "float32"),
        cwd=tmp_path,
        timeout_s=180.0,
    )
    assert code == 0, err
    done = outputs(sink)
    assert "Paris" in done["france"]["response"]["body"]["choices"][0]["message"]["content"]
    assert len(done["other"]["response"]["body"]["choices"][0]["token_ids"]) == 5
    assert totals(out)[0] == 2
