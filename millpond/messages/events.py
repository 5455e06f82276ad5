"""What happens to a job, as it happens."""

from enum import StrEnum

from pydantic import Field

from millpond.messages.fields import PROTOCOL_VERSION, Stored
from millpond.messages.results import JobResult, JobStatus


class EventType(StrEnum):
    STARTED = "started"
    REASONING = "reasoning"
    DELTA = "delta"
    RESET = "reset"
    REQUEUED = "requeued"
    FINISHED = "finished"


class JobEvent(Stored):
    """One entry of a job's event stream and the payload of its channel.

    ``started``: an attempt began. ``delta``: append ``text``, which begins at character ``offset`` of
    the attempt's text, or of the choice ``index``. ``reasoning``: the same of what the model thinks before it
    answers. ``reset``: the attempt is void; discard its text. ``requeued``: its worker is gone, and the job
    waits for another, which goes on where the text ends.
    ``finished``: the last event; ``result`` is the stored result.
    """

    v: int = PROTOCOL_VERSION
    type: EventType
    id: str
    event_id: str = Field(default="", description="The stream entry's id, for replay.")
    attempt: int = 0
    text: str = ""
    offset: int = 0
    index: int | None = Field(default=None, description="The choice, when n is above 1.")
    tokens: int | None = Field(
        default=None, description="Of a delta: the tokens of its text, or of its choice, so far."
    )
    reason: str = ""
    status: JobStatus | None = None
    finished_ms: int | None = None
    result: JobResult | None = Field(
        default=None, description="Stored apart; filled in by whoever reads the event."
    )
