"""Why a job is still waiting, in words and as a code. Pure."""

from api.schemas import WaitReason
from millpond.results import JobView, QueueState
from millpond.worker_state import WorkerState


def wait_reason(view: JobView, state: QueueState) -> WaitReason:
    """The one reason that matters most for this queued job."""
    alive = [worker for worker in state.workers if worker.alive]
    ready = [worker.state for worker in alive if worker.ready]
    if view.retry_in_ms is not None:
        seconds = view.retry_in_ms / 1000
        return WaitReason(
            code="retry_delay",
            message=f"waiting to be tried again, in {seconds:.1f} s, after attempt {view.attempts}",
        )
    if not alive:
        return WaitReason(code="no_worker", message="no worker is alive")
    if not ready:
        return WaitReason(code="worker_loading", message="the worker is not ready yet")
    if view.ahead:
        number = f"{'' if view.ahead_exact else 'about '}{view.ahead}"
        return WaitReason(
            code="behind_others", message=f"behind {number} job{'s' * (view.ahead > 1)}"
        )
    if all(_is_full(worker) for worker in ready):
        return WaitReason(code="slots_busy", message="all slots are busy")
    return WaitReason(
        code="window_open", message=f"waiting for the window to fill{_window(ready[0])}"
    )


def wait_estimate_s(view: JobView, state: QueueState) -> float | None:
    """Until the jobs ahead are done at the recent pace. None: no pace is known."""
    if state.jobs_per_s <= 0 or view.ahead is None:
        return None
    return round(view.ahead / state.jobs_per_s + (view.retry_in_ms or 0) / 1000, 1)


def _is_full(worker: WorkerState) -> bool:
    return worker.slots is not None and worker.held >= worker.slots


def _window(worker: WorkerState) -> str:
    window = worker.window
    if window is None:
        return ""
    wait = "" if window.max_wait_ms is None else f" or {window.max_wait_ms:g} ms"
    return f" ({window.close_jobs} jobs{wait})"
