"""``millpond bench`` as a person runs it: a sweep, a comparison, and Ctrl-C."""

import asyncio
import csv
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

from millpond.bench.report.files import read_record
from tests.acceptance.conftest import MILLPOND, Up, run_command, until

SIMULATED = ("--engine", "simulated")


def lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "report.csv").open() as file:
        return list(csv.DictReader(file))


async def test_a_sweep_shows_what_batching_gains_and_is_compared_with_itself(
    tmp_path: Path,
) -> None:
    sweep = (
        *("bench", *SIMULATED, "--vary", "slots=1,8", "--concurrency", "8", "--rate", "30"),
        *("--seconds", "0.7", "--output-tokens", "12", "--limit", "e2e=1000"),
    )
    code, out, err = await run_command(*sweep, "--out", "first", cwd=tmp_path)
    assert code == 0, err
    assert out.split() == [f"first/report.{end}" for end in ("json", "html", "md", "csv")]
    assert "slots=1: 8 at once: " in err  # progress, line by line

    one, one_open, eight, eight_open = lines(tmp_path / "first")
    assert (one["target"], one["load"], eight["load"]) == ("slots=1", "8 at once", "8 at once")
    assert float(eight["output_tokens_per_s"]) > 3 * float(one["output_tokens_per_s"])
    assert float(one["batch_rows"]) == 1.0
    assert float(one["slot_use"]) > float(eight_open["slot_use"]) > 0
    # Thirty requests a second are too many for one row at a time, and they wait.
    assert float(one_open["wait_p90_ms"]) > float(eight_open["wait_p90_ms"])
    assert float(eight_open["goodput_per_s"]) > float(one_open["goodput_per_s"])
    assert {float(line["mean_prompt_tokens"]) for line in lines(tmp_path / "first")} == {127.0}

    again = ("bench", "--from", "first/report.json", "--compare", "first/report.json")
    code, _, err = await run_command(*again, "--out", "again", cwd=tmp_path)
    assert code == 0, err
    assert "## What moved" in (tmp_path / "again" / "report.md").read_text()
    assert lines(tmp_path / "again") == lines(tmp_path / "first")


async def test_the_running_stack_is_measured_and_ctrl_c_leaves_a_report(
    up: Callable[..., Awaitable[Up]], tmp_path: Path
) -> None:
    stack = await up(*SIMULATED, "--port", "0")
    shown = tmp_path / "shown.txt"
    with shown.open("wb") as sink:
        process = await asyncio.create_subprocess_exec(
            *(MILLPOND, "bench", "--data", stack.data, *SIMULATED, "--concurrency", "2,1"),
            *("--requests", "4", "--rounds", "100", "--out", "half", "--no-stream"),
            stdout=sink,
            stderr=sink,
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "200"},
        )
    await until(lambda: "1/100: 1 at once" in shown.read_text(), 30.0, "a round has ended")
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 20.0) == 1
    assert "Traceback" not in shown.read_text()
    record = read_record("--compare", tmp_path / "half" / "report.json")
    assert not record.complete
    assert record.targets[0].url == f"{stack.about.api_url}/v1"
    assert [len(run.requests) for run in record.runs[:2]] == [4, 4]
    assert record.targets[0].worker["backend"] == "simulated"
    whole = record.runs[0].requests[0]
    assert (whole.first_s, whole.output_tokens, whole.error) == (None, 64, None)
    assert "was stopped before its end" in (tmp_path / "half" / "report.html").read_text()


async def test_the_frontier_is_where_rows_have_to_wait(tmp_path: Path) -> None:
    code, _, err = await run_command(
        *("bench", *SIMULATED, "--frontier", "64", "--batches", "2,8,16", "--out", "found"),
        *("--set", "kv_tokens=256"),
        cwd=tmp_path,
    )
    assert code == 0, err
    tried = read_record("--compare", tmp_path / "found" / "report.json").frontier
    assert [(one.batch, one.outcome, one.most_rows) for one in tried] == [
        (2, "fits", 2),
        (8, "waits", 4),
    ]
    assert all((one.memory_bytes or 0) > 10 * 2**20 for one in tried)
    assert "| 64 | 8 | waits for room | 4 |" in (tmp_path / "found" / "report.md").read_text()
