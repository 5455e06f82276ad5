"""Why a job waits, for every state that its queue can be in."""

from dataclasses import replace
from typing import Any

import pytest

from api.answers.wait_reason import wait_estimate_s, wait_reason
from millpond.messages import JobStatus, Priority
from millpond.messages.worker_state import RegisteredWorker, WorkerState
from millpond.queue.results import JobView, QueueState

READY = {"state": "ready", "slots": 4, "in_flight": 0, "jobs_per_s": 2.0}
WINDOW = {"close_jobs": 2, "max_jobs": 32, "max_wait_ms": 200.0}

VIEW = JobView(
    id="a",
    status=JobStatus.QUEUED,
    tenant="default",
    priority=Priority.NORMAL,
    attempts=0,
    created_ms=0,
    claimed_ms=None,
    worker=None,
    cancelling=False,
    streams=True,
    position=1,
    ahead=0,
    ahead_exact=True,
    retry_in_ms=None,
    result=None,
)


def queue(*workers: dict[str, Any], beat_age_ms: int = 0) -> QueueState:
    return QueueState(
        queued=dict.fromkeys(Priority, 0),
        waiting_ms=dict.fromkeys(Priority, 0),
        running=0,
        accepted=dict.fromkeys(Priority, 0),
        done={},
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
        workers=[
            RegisteredWorker(
                f"w{i}", beat_age_ms, WorkerState.model_validate({"model": "m", **state})
            )
            for i, state in enumerate(workers)
        ],
    )


@pytest.mark.parametrize(
    ("view", "state", "code", "message"),
    [
        (VIEW, queue(), "no_worker", "no worker is alive"),
        (VIEW, queue(READY, beat_age_ms=60_000), "no_worker", "no worker is alive"),
        (VIEW, queue({"state": "loading"}), "worker_loading", "the worker is not ready yet"),
        (VIEW, queue(READY), "window_open", "waiting for the window to fill"),
        (
            VIEW,
            queue({**READY, "window": WINDOW}),
            "window_open",
            "waiting for the window to fill (2 jobs or 200 ms)",
        ),
        (
            VIEW,
            queue({**READY, "window": {"close_jobs": 1, "max_jobs": 64, "max_wait_ms": 0}}),
            "window_open",
            "next: a worker is about to take it",
        ),
        (VIEW, queue({**READY, "in_flight": 4}), "slots_busy", "all slots are busy"),
        (
            VIEW,
            queue({**READY, "in_flight": 4}, READY),
            "window_open",
            "waiting for the window to fill",
        ),
        (replace(VIEW, ahead=1), queue(READY), "behind_others", "behind 1 job"),
        (
            replace(VIEW, ahead=7),
            queue({**READY, "in_flight": 4}),
            "behind_others",
            "behind 7 jobs",
        ),
        (
            replace(VIEW, ahead=7, ahead_exact=False),
            queue(READY),
            "behind_others",
            "behind about 7 jobs",
        ),
        (
            replace(VIEW, ahead=7, attempts=2, retry_in_ms=1500),
            queue(),
            "retry_delay",
            "waiting to be tried again, in 1.5 s, after attempt 2",
        ),
    ],
)
def test_the_reason_that_matters_most(
    view: JobView, state: QueueState, code: str, message: str
) -> None:
    reason = wait_reason(view, state)
    assert (reason.code, reason.message) == (code, message)


def test_the_estimate_needs_a_pace() -> None:
    assert wait_estimate_s(replace(VIEW, ahead=7), queue(READY, READY)) == 1.8
    assert wait_estimate_s(replace(VIEW, ahead=7), queue()) is None
    assert wait_estimate_s(replace(VIEW, ahead=0, retry_in_ms=1500), queue(READY)) == 1.5
