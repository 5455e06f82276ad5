"""The coarse jobs that RQ runs, as those who enqueue them describe them. RQ itself is not needed for that.

RQ's queues are named after the home queue of the API, since its tenants and their files are.
"""

from dataclasses import dataclass
from typing import Final

BATCHES: Final = "batches"
WEBHOOKS: Final = "webhooks"
BACKGROUND_QUEUES: Final = (BATCHES, WEBHOOKS)
# How long RQ remembers a job that has ended well, and one that has failed.
RESULT_TTL_S = 60
FAILURE_TTL_S = 24 * 3600
RETRIES = 3


@dataclass(frozen=True, slots=True)
class BackgroundJob:
    """``function`` is the dotted path of one in the package ``background``; ``arguments`` go there as JSON.

    It has to bear being killed at any point, and being run twice.
    """

    kind: str
    function: str
    arguments: tuple[str | int, ...] = ()
    timeout_s: int = 60


def rq_queue_name(home: str, kind: str) -> str:
    """RQ's queue of this kind of job, for the APIs whose home queue this is."""
    return f"{home}-{kind}"


# Takes up batches that nobody works on, and cleans their storage.
LOOK_AFTER_BATCHES = BackgroundJob(BATCHES, "background.batches.tasks.look_after")
# Delivers webhooks for so long, and then once more.
WEBHOOK_SLICE_S = 600
DELIVER_WEBHOOKS = BackgroundJob(
    WEBHOOKS, "background.webhooks.task.deliver", timeout_s=WEBHOOK_SLICE_S + 120
)
