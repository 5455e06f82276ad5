"""Why a job is still waiting, as the API shows it."""

import dataclasses

from api.schemas import WaitReason
from millpond import waiting
from millpond.results import JobView, QueueState
from millpond.waiting import wait_estimate_s

__all__ = ["wait_estimate_s", "wait_reason"]


def wait_reason(view: JobView, state: QueueState) -> WaitReason:
    """The one reason that matters most for this queued job."""
    return WaitReason(**dataclasses.asdict(waiting.wait_reason(view, state)))
