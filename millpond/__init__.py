"""Millpond: a durable Redis queue and a batching worker for LLM inference.

The public surface: a client, the messages, the queue protocol and the errors.
"""

from millpond.client import BlockingClient, Client
from millpond.errors import (
    IdempotencyConflictError,
    InvalidRequestError,
    JobNotFoundError,
    MillpondError,
    QueueFullError,
    QueueUnavailableError,
    WaitTimeoutError,
)
from millpond.messages import (
    EventType,
    FinishReason,
    JobEvent,
    JobRequest,
    JobResult,
    JobStatus,
    Message,
    Priority,
    Receipt,
    Truncation,
    VoteKind,
    VoteResult,
)
from millpond.messages.sampling_params import SamplingParams
from millpond.queue.job_queue import JobQueue, QueueOptions
from millpond.queue.results import JobView, QueueState, Results
from millpond.queue.submission import NewJob, Submission
from millpond.queue.subscriptions import Subscriptions

__version__ = "0.1.0"

__all__ = [
    "BlockingClient",
    "Client",
    "EventType",
    "FinishReason",
    "IdempotencyConflictError",
    "InvalidRequestError",
    "JobEvent",
    "JobNotFoundError",
    "JobQueue",
    "JobRequest",
    "JobResult",
    "JobStatus",
    "JobView",
    "Message",
    "MillpondError",
    "NewJob",
    "Priority",
    "QueueFullError",
    "QueueOptions",
    "QueueState",
    "QueueUnavailableError",
    "Receipt",
    "Results",
    "SamplingParams",
    "Submission",
    "Subscriptions",
    "Truncation",
    "VoteKind",
    "VoteResult",
    "WaitTimeoutError",
    "__version__",
]
