"""Why a job is still waiting, in words and as a code. Pure."""

from dataclasses import dataclass
from typing import Literal

from millpond.messages import JobStatus
from millpond.messages.worker_state import WorkerState
from millpond.queue.results import JobView, QueueState

# A worker renews its entry once a heartbeat; a longer silence is worth mentioning.
SILENT_AFTER_MS = 3_000

Code = Literal[
    "no_worker", "worker_loading", "retry_delay", "behind_others", "window_open", "slots_busy"
]


@dataclass(frozen=True, slots=True)
class Reason:
    code: Code
    message: str


def wait_reason(view: JobView, state: QueueState) -> Reason:
    """The main reason why this queued job is still waiting."""
    alive = [worker for worker in state.workers if worker.alive]
    ready = [worker.state for worker in alive if worker.ready]
    if view.retry_in_ms is not None:
        seconds = view.retry_in_ms / 1000
        return Reason(
            "retry_delay",
            f"waiting to be tried again, in {seconds:.1f} s, after attempt {view.attempts}",
        )
    if not alive:
        return Reason("no_worker", "no worker is alive")
    if not ready:
        return Reason("worker_loading", "the worker is not ready yet")
    if view.ahead:
        number = f"{'' if view.ahead_exact else 'about '}{view.ahead}"
        return Reason("behind_others", f"behind {number} job{'s' * (view.ahead > 1)}")
    if all(_is_full(worker) for worker in ready):
        return Reason("slots_busy", "all slots are busy")
    return Reason("window_open", _window(ready[0]))


def why_silent(view: JobView, state: QueueState) -> str:
    """In words, why an unfinished job makes no progress."""
    if view.status is JobStatus.QUEUED:
        return wait_reason(view, state).message
    worker = next((w for w in state.workers if w.id == view.worker), None)
    if worker is None or worker.beat_age_ms > SILENT_AFTER_MS:
        return "its worker is silent; the job is taken back when its lease ends"
    return "it runs"


def wait_estimate_s(view: JobView, state: QueueState) -> float | None:
    """Time until the jobs ahead are done, at the recent rate. None if no rate is known."""
    if state.jobs_per_s <= 0 or view.ahead is None:
        return None
    return round(view.ahead / state.jobs_per_s + (view.retry_in_ms or 0) / 1000, 1)


def _is_full(worker: WorkerState) -> bool:
    return worker.slots is not None and worker.in_flight >= worker.slots


def _window(worker: WorkerState) -> str:
    """A window of one job is none: the worker takes what is there at its next turn."""
    window = worker.window
    if window is None:
        return "waiting for the window to fill"
    if window.close_jobs <= 1 or window.max_wait_ms == 0:
        return "next: a worker is about to take it"
    wait = "" if window.max_wait_ms is None else f" or {window.max_wait_ms:g} ms"
    return f"waiting for the window to fill ({window.close_jobs} jobs{wait})"
