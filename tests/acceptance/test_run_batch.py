"""``millpond run-batch``: files in, files out, restartable."""

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from tests.acceptance.conftest import MILLPOND, run_command, until

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
