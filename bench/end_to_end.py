"""A batch file through a queue and a worker, as ``millpond run-batch`` does it for its users."""

import asyncio
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.workload import Line, write_lines
from millpond.local.stack import Stack, running_stack
from millpond.queue.connection import connect
from millpond.queue.results import Results
from millpond.queue.subscriptions import Subscriptions
from millpond.settings import Settings

READY_TIMEOUT_S = 300.0
LOOK_S = 0.2
_CLI = "from millpond.cli import main; main()"
_RATE = re.compile(r"([\d.]+) tok/s")


@dataclass(frozen=True, slots=True)
class EndToEnd:
    """``slot_share``: rows over slots in all turns while more jobs were queued; None: none ever."""

    tokens_per_s: float
    slot_share: float | None


def run_end_to_end(lines: Sequence[Line], settings: Settings) -> EndToEnd:
    """Put these lines of a batch file through a stack of its own, which is ready before."""
    return asyncio.run(_run(lines, settings))


async def _run(lines: Sequence[Line], settings: Settings) -> EndToEnd:
    with tempfile.TemporaryDirectory(prefix="millpond-bench-") as folder:
        input_, output = Path(folder) / "in.jsonl", Path(folder) / "out.jsonl"
        write_lines(lines, input_)
        own = settings.model_copy(update={"data_dir": Path(folder), "grace_s": 1.0})
        async with running_stack(own, embedded_server=True, api=False, say=print) as stack:
            await stack.wait_ready(READY_TIMEOUT_S)
            argv = [sys.executable, "-c", _CLI, "run-batch", "-i", str(input_), "-o", str(output)]
            process = await asyncio.create_subprocess_exec(
                *argv,
                f"--redis-url={stack.redis_url}",
                "--any-model",  # the workload names one, the bench runs it on others, too
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            watching = asyncio.create_task(_slot_share(stack))
            said, _ = await process.communicate()
            watching.cancel()
            await asyncio.wait({watching})
    found = _RATE.search(said.decode())
    if process.returncode != 0 or found is None:
        raise RuntimeError(f"run-batch ended with {process.returncode}: {said.decode()}")
    return EndToEnd(float(found[1]), watching.result())


async def _slot_share(stack: Stack) -> float | None:
    """Until cancelled: the worker's own figure, as it was when last seen with jobs queued."""
    redis = connect(stack.redis_url)
    results = Results(redis, stack.settings.queue, Subscriptions(redis))
    share: float | None = None
    try:
        while True:
            state = await results.queue_state()
            if state.depth > 0 and state.workers:
                share = state.workers[0].state.slot_share or share
            await asyncio.sleep(LOOK_S)
    except asyncio.CancelledError:
        return share
    finally:
        await redis.aclose()
