"""Why a job is still waiting, as the API shows it."""

import dataclasses

from api.answers.schemas import WaitReason
from millpond.queue import waiting
from millpond.queue.results import JobView, QueueState
from millpond.queue.waiting import wait_estimate_s

__all__ = ["wait_estimate_s", "wait_reason"]


def wait_reason(view: JobView, state: QueueState) -> WaitReason:
    """The one reason that matters most for this queued job."""
    return WaitReason(**dataclasses.asdict(waiting.wait_reason(view, state)))
