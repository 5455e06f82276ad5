"""What the charts show of several workers together."""

from typing import Any

from api.history import EVERY_S, KEPT_S, History, Moment
from millpond.messages import JobStatus, Priority
from millpond.messages.worker_state import (
    WORKER_ALIVE_MS,
    RegisteredWorker,
    WorkerPhase,
    WorkerState,
)
from millpond.queue.results import QueueState


def worker(id: str, beat_age_ms: int = 10, **fields: Any) -> RegisteredWorker:
    state = WorkerState.model_validate({"state": WorkerPhase.READY, "model": "m", **fields})
    return RegisteredWorker(id, beat_age_ms, state)


def state(*workers: RegisteredWorker, queued: int = 0) -> QueueState:
    none = dict.fromkeys(Priority, 0)
    return QueueState(
        queued={**none, Priority.NORMAL: queued},
        waiting_ms=none,
        running=3,
        accepted=none,
        done=dict.fromkeys((s for s in JobStatus if s.terminal), 0),
        dead=0,
        delayed=0,
        missing=0,
        leases_lost=0,
        retries=0,
        dead_letters=0,
        webhooks_pending=0,
        webhooks_delivered=0,
        webhooks_dropped=0,
        unfinished={},
        workers=list(workers),
    )


def test_workers_together() -> None:
    fast = worker("a", jobs_per_s=3.0, tokens_per_s=300, latency_p50_ms=100, latency_p90_ms=200)
    slow = worker("b", jobs_per_s=1.0, tokens_per_s=100, latency_p50_ms=500, latency_p90_ms=900)
    silent = worker("c", WORKER_ALIVE_MS + 1, jobs_per_s=9.0, latency_p50_ms=1, latency_p90_ms=9e9)
    moment = Moment.of(state(fast, slow, silent, queued=7), at_ms=1)
    assert (moment.queued, moment.running, moment.jobs_per_s, moment.tokens_per_s) == (7, 3, 4, 400)
    assert (moment.latency_p50_ms, moment.latency_p90_ms) == (200.0, 900)
    assert (moment.wait_p50_ms, moment.wait_p90_ms) == (None, None)


def test_nobody_tells_anything() -> None:
    moment = Moment.of(state(worker("new")), at_ms=1)
    assert (moment.latency_p50_ms, moment.latency_p90_ms) == (None, None)


def test_ten_minutes_are_kept() -> None:
    history = History()
    for _ in range(round(KEPT_S / EVERY_S) + 5):
        history.add(state())
    assert len(history.moments) == KEPT_S / EVERY_S
