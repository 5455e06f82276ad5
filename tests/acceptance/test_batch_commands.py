"""``millpond batch`` and ``millpond files``, on a stack with its background worker."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.acceptance.conftest import Up, run_command
from tests.acceptance.test_run_batch import request

Start = Callable[..., Awaitable[Up]]


async def test_a_batch_by_commands_alone(up: Start, tmp_path: Path) -> None:
    stack = await up("--engine", "simulated", "--port", "0")
    here = ("--data", str(stack.data))
    (tmp_path / "in.jsonl").write_bytes(b"".join(request(f"r{i}") for i in range(5)))
    (tmp_path / "bad.jsonl").write_bytes(request("a") + b"{nothing\n")

    async def run(*arguments: str) -> tuple[int, str, str]:
        return await run_command(*arguments, *here, cwd=tmp_path)

    code, out, err = await run("batch", "create", "in.jsonl", "--watch", "--metadata", "a=b")
    assert code == 0, err
    id, summary = out.splitlines()
    assert summary == "completed: 5 of 5 rows, 0 failed"
    code, out, _ = await run("batch", "show", id)
    batch = json.loads(out)
    assert batch["metadata"] == {"a": "b"}
    code, out, err = await run("batch", "results", id)
    assert {json.loads(line)["custom_id"] for line in out.splitlines()} == {
        f"r{i}" for i in range(5)
    }
    code, _, err = await run("batch", "results", id, "--errors")
    assert (code, "has no failed lines" in err) == (2, True)
    code, _, err = await run("batch", "cancel", id)
    assert (code, "it is completed" in err) == (2, True)

    code, out, err = await run("batch", "create", "bad.jsonl", "--watch", "--json")
    assert code == 1, err
    assert json.loads(out)["status"] == "failed"
    code, _, err = await run("batch", "watch", json.loads(out)["id"])
    assert (code, "line 2: not JSON" in err) == (1, True)

    code, out, _ = await run("batch", "list")
    assert id in out
    assert "failed" in out
    code, out, _ = await run("files", "list", "--json")
    files = {file["id"]: file for file in json.loads(out)}
    assert sorted(file["purpose"] for file in files.values()) == ["batch", "batch", "batch_output"]
    output = batch["output_file_id"]
    code, _, err = await run("files", "content", output, "-o", "out.jsonl")
    assert code == 0, err
    assert (tmp_path / "out.jsonl").stat().st_size == files[output]["bytes"]
    assert (await run("files", "delete", output))[0] == 0
    code, _, err = await run("files", "show", output)
    assert code == 2
    assert output in err
    assert "Traceback" not in err
    code, _, err = await run_command(
        "files", "list", "--api-url", "http://127.0.0.1:1", cwd=tmp_path
    )
    assert (code, "cannot be reached" in err) == (2, True)
