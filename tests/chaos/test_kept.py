"""Rows that outlive their workers. The numbers are docs/reliability.md's."""

import contextlib
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from millpond.local.server import RedisServer
from millpond.messages import EventType, JobEvent, JobRequest, JobStatus
from tests.chaos.fleet import COUNTING, Fleet, Ledger, Process, ledger_on, worker_settings
from tests.chaos.test_workers import LIMIT_S, server, size, sweeping
from tests.contract.jobs import until
from tests.knobs import FULL_CHAOS

__all__ = ["server"]

# As the row goes on: how its worker is taken from it. A stopped one comes back late.
KILL, TERM, STOP = signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP
ENDS = size([KILL, TERM, STOP, KILL, KILL], [KILL, TERM])
full_only = pytest.mark.skipif(not FULL_CHAOS, reason="of the full form only")
REAL: dict[str, Any] = {"engine": "transformers", "model": "smollm2-135m", "slots": 4}


async def holder(ledger: Ledger, fleet: Fleet) -> Process:
    """The process that runs the only job."""

    async def found() -> Process | None:
        for process in fleet.processes:
            if await ledger.held_by(process.pid):
                return process
        return None

    process: Process = await until(found, LIMIT_S)
    return process


@pytest.mark.parametrize(
    "model",
    [
        "simulated",
        pytest.param("not streamed", marks=full_only),
        pytest.param("real", marks=full_only),
    ],
)
async def test_a_long_row_outlives_its_workers(
    server: RedisServer, tmp_path: Path, model: str
) -> None:
    """Row 34: a row whose worker is taken from it again and again costs a tenth more tokens at most, and
    its stream goes on as if nothing had happened."""
    tokens = size(4_000, 400)
    counter = tmp_path / "tokens"
    counter.write_bytes(bytes(8))

    def generated() -> int:
        return int.from_bytes(counter.read_bytes(), "little")

    settings = worker_settings(
        server,
        lease_s=size(1.0, 0.4),
        heartbeat_s=0.1,
        grace_s=0.1,
        retry_delay_s=0.01,
        retry_delay_max_s=0.05,
        checkpoint_tokens=size(32, 8),
        delta_interval_ms=size(50.0, 10.0),
        simulated={"costs": {"decode_s_per_step": 0.003}},
        **(REAL if model == "real" else {}),
    )
    request = JobRequest(
        prompt="A long story.",
        max_tokens=tokens,
        ignore_eos=True,
        temperature=0.8,
        seed=11,
        stream=model != "not streamed",
    )
    chance = random.Random(34)
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(
            settings,
            2,
            tmp_path / "workers.log",
            prelude=COUNTING.format(path=str(counter)),
            forked=model != "real",
        ) as fleet,
        sweeping(ledger, settings.heartbeat_s),
    ):
        [id] = await ledger.submit([request])
        stopped: list[Process] = []
        for number, end in enumerate(ENDS, 1):
            least = number * tokens // (len(ENDS) + 1) + chance.randrange(32)

            async def so_far(least: int = least) -> bool:
                return generated() >= least

            await until(so_far, LIMIT_S)
            process = await holder(ledger, fleet)
            process.send_signal(end)
            if end is STOP:
                stopped.append(process)

            async def given_up(number: int = number) -> bool:
                return sum(ledger.resets.values()) == number

            await until(given_up, LIMIT_S)
            for process in stopped:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
        await ledger.all_ended(LIMIT_S)
        total = generated()
        result = (await ledger.results.get(id)).result
        assert result is not None
        assert result.receipt is not None
        assert result.receipt.resumed_tokens > 0
        events = [event async for event in ledger.results.subscribe(id)]
        assert EventType.RESET not in {event.type for event in events}
        assert joined(events) == (result.text if request.stream else "")
        if model == "real":
            [undisturbed] = await ledger.submit([request])
            await ledger.all_ended(LIMIT_S)
            assert (await ledger.results.get(undisturbed)).result.text == result.text
        else:
            await ledger.check(least_succeeded=1.0)
        print(
            f"{model}: {tokens} tokens, {len(ENDS)} workers taken away, {total} generated, "
            f"{(total / tokens - 1):.1%} more; {result.receipt.resumed_tokens} resumed at last"
        )
        assert tokens <= total <= 1.1 * tokens


async def requeued(ledger: Ledger, id: str) -> list[str]:
    """Why the job was taken from its workers."""
    entries = await ledger.redis.xrange(ledger.queue.keys.events(id))
    events = [JobEvent.model_validate_json(fields[b"event"]) for _, fields in entries]
    return [event.reason for event in events if event.type is EventType.REQUEUED]


def joined(events: list[JobEvent]) -> str:
    text = ""
    for event in events:
        if event.type is EventType.DELTA:
            assert event.offset == len(text)
            text += event.text
    return text


async def test_tokens_that_kill_end_in_the_quarantine(server: RedisServer, tmp_path: Path) -> None:
    """A row that goes on, and kills its worker at the same token again."""
    settings = worker_settings(
        server,
        lease_s=0.4,
        heartbeat_s=0.1,
        retry_delay_s=0.01,
        max_deaths=2,
        checkpoint_tokens=8,
        simulated={
            "costs": {"decode_s_per_step": 0.001},
            "faults": {"kill_marker": "POISON", "kill_at_tokens": 30},
        },
    )
    number = size(8, 1)
    requests = [
        JobRequest(prompt=f"{'job' if i else 'POISON'} {i}", max_tokens=60, ignore_eos=True)
        for i in range(number)
    ]
    async with (
        ledger_on(server, settings.queue_options()) as ledger,
        Fleet(settings, 2, tmp_path / "workers.log"),
        sweeping(ledger, settings.heartbeat_s),
    ):
        poison, *_ = await ledger.submit(requests)
        await ledger.all_ended(LIMIT_S)
        statuses = await ledger.check(least_succeeded=(number - 1) / number)
        assert statuses[JobStatus.SUCCEEDED] == number - 1
        ended = (await ledger.results.get(poison)).result
        assert ended is not None
        assert ended.error is not None
        assert ended.error.code == "attempts_exhausted"
        assert "lease_expired" in await requeued(ledger, poison), "it went on, and did so again"
        assert not [key async for key in ledger.redis.scan_iter(match="*:kept:*")]
