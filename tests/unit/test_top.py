"""The live view: what it remembers, and how it is drawn."""

from rich.console import Console

from millpond.messages import FinishReason, JobResult, JobStatus, Priority, Receipt, Usage
from millpond.messages.worker_state import RegisteredWorker, WorkerState
from millpond.queue.results import QueueState
from millpond.top.gathering import Shown
from millpond.top.history import Ending, History, percentile
from millpond.top.screen import bar, draw, sparkline


def a_state(*workers: RegisteredWorker, queued: int = 3) -> QueueState:
    return QueueState(
        queued={Priority.INTERACTIVE: queued, Priority.NORMAL: 0, Priority.BATCH: 12_345},
        waiting_ms=dict.fromkeys(Priority, 4_200),
        running=5,
        accepted=dict.fromkeys(Priority, 9),
        done={},
        dead=2,
        delayed=0,
        missing=0,
        leases_lost=0,
        retries=0,
        dead_letters=2,
        webhooks_pending=0,
        webhooks_delivered=0,
        webhooks_dropped=0,
        unfinished={},
        workers=list(workers),
    )


def a_worker(id: str, age_ms: int = 0, **fields: object) -> RegisteredWorker:
    state = {"state": "ready", "model": "m", "backend": "torch cpu", "slots": 8, "rows": 4}
    return RegisteredWorker(id, age_ms, WorkerState.model_validate({**state, **fields}))


def an_ending(at_s: float, id: str = "xu4dpc7zu4frbbjroyf6go7u", wait_ms: float = 100) -> Ending:
    return Ending("default", id, JobStatus.SUCCEEDED, "stop", at_s, wait_ms, 50, 900, 45)


def lines(shown: Shown, history: History, width: int, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, color_system=None, force_terminal=True)
    with console.capture() as captured:
        console.print(
            draw(shown, history, "redis://h:1/0", width=width, height=height, paused=False)
        )
    return captured.get().splitlines()


def test_a_screen_shows_queues_workers_and_endings_and_fits() -> None:
    history = History()
    history.endings.extend(an_ending(at_s) for at_s in range(100))
    workers = [a_worker("host-71-a9", rows=8), a_worker("host-72-b1", age_ms=30_000)]
    shown = Shown(100.0, {"default": a_state(*workers)})
    for width, height in ((80, 24), (140, 40)):
        drawn = lines(shown, history, width, height)
        text = "\n".join(drawn)
        assert all(len(line) <= width for line in drawn)
        assert len(drawn) <= height
        assert "12,345" in text
        assert "████████████████" in text
        assert "silent 30 s" in text
        assert "xu4dpc7zu4frbbjroyf6go7u" in text, "an id is never cut"
        wide = width == 140
        assert ("first token 150 ms / 150 ms / 150 ms" if wide else "token 150 ms/150 ms") in text
        assert not any(line.startswith(" p50") and "…" in line for line in drawn)


def test_many_workers_leave_room_and_are_counted() -> None:
    shown = Shown(0.0, {"default": a_state(*(a_worker(f"w{i}") for i in range(40)))})
    drawn = lines(shown, History(), 80)
    assert len(drawn) <= 24
    assert any("more" in line for line in drawn)


def test_a_server_that_is_away_is_told_beside_what_was_seen_last() -> None:
    drawn = lines(Shown(0.0, {"default": a_state()}, "Redis cannot serve now"), History(), 140)
    assert "Redis cannot serve now" in drawn[0]
    assert any("no worker has signed on" in line for line in drawn)


def test_rates_are_of_the_last_seconds() -> None:
    history = History()
    assert history.jobs_per_s(0.0) == 0.0
    for second in range(90):
        history.ended(float(second), 10 * second)
    assert history.jobs_per_s(89.0) == 10.0
    assert history.jobs_each_second() == [10.0] * 60
    assert history.jobs_per_s(200.0) == 0.0, "nothing was looked at lately"


def test_endings_of_the_last_minute() -> None:
    history = History()
    history.endings.extend([an_ending(1.0, "old"), an_ending(50.0, "new")])
    assert [ending.id for ending in history.last_minute(100.0)] == ["new"]


def test_an_ending_is_read_from_a_result() -> None:
    bare = JobResult(id="a", status=JobStatus.CANCELLED, finish_reason=FinishReason.CANCELLED)
    assert Ending.of("q", bare, 1.0).wait_ms is None
    receipt = Receipt.model_construct(queue_wait_ms=5.0, first_token_ms=7.0, run_ms=9.0)
    whole = bare.model_copy(
        update={"receipt": receipt, "usage": Usage(prompt_tokens=1, completion_tokens=4)}
    )
    ending = Ending.of("q", whole, 1.0)
    assert (ending.wait_ms, ending.run_ms, ending.tokens) == (5.0, 9.0, 4)


def test_small_pictures() -> None:
    assert bar(0, 8).plain == "░" * 16
    assert bar(1, 128).plain.startswith("█░"), "one row is seen"
    assert bar(8, 8).plain == "█" * 16
    assert bar(3, 0).plain == "░" * 16
    assert sparkline([0, 5, 10]) == "▁▅█"
    assert sparkline([0, 0]) == "▁▁"
    assert percentile([], 0.5) is None
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
