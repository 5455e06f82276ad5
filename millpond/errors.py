"""The errors that Millpond raises, each with the code and the HTTP status its client sees.

MillpondError
├── InvalidRequestError        the request itself is wrong; names the field and the limit
│   ├── PromptTooLongError     more prompt tokens than the limit allows
│   ├── UnknownModelError      no such model is served here
│   ├── WebhookForbiddenError  the webhook's address is one that may not be called
│   └── NoWebhooksError        the server is a Redis Cluster, where nothing would send the webhook
├── IdempotencyConflictError   an Idempotency-Key or job id was used for another request
├── QueueFullError             the depth limit is reached; try again later
│   ├── TenantFullError        the tenant has as many unfinished jobs as its key allows
│   └── TenantStorageFullError requests and results of the tenant take as much as they may
├── LimitExceededError         a key has spent its requests or tokens of this minute
├── JobNotFoundError           no job has that id, or its result has expired
├── UnknownFileError           no uploaded or written file has that id
├── FileInUseError             the output of a batch that still runs cannot be deleted
├── FilesFullError             the tenant's uploaded files take as much as they may
├── UnknownBatchError          no batch has that id
├── BatchEndedError            a batch that has ended cannot be cancelled
├── StorageUnavailableError    the storage of batch files cannot be reached
├── QueueUnavailableError      Redis is away, loading, read-only or out of memory
├── WaitTimeoutError           the job did not finish within the caller's timeout
├── ModelLoadError             a model folder or preset cannot be loaded
│   └── UnsupportedModelError  the engine cannot serve this architecture correctly
└── ServerNotFoundError        no Redis-protocol server can be started on this machine
"""

from collections.abc import Sequence
from typing import Any, ClassVar


class MillpondError(Exception):
    """The base class. ``code`` is stable and machine-readable; ``http_status`` is the API's answer."""

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500


class InvalidRequestError(MillpondError):
    """``field`` is the JSON path of the wrong value; ``limit`` is the limit it exceeds, if any."""

    code = "invalid_request"
    http_status = 422

    def __init__(self, field: str, message: str, *, limit: float | None = None) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message
        self.limit = limit


class PromptTooLongError(InvalidRequestError):
    code = "prompt_too_long"


class UnknownModelError(InvalidRequestError):
    code = "unknown_model"


class WebhookForbiddenError(InvalidRequestError):
    """It does not say which address: that would tell a client what names inside the network mean."""

    code = "webhook_forbidden"

    def __init__(self) -> None:
        super().__init__(
            "webhook_url",
            "its host is not a public address, and is in no network of the setting webhook_allow",
        )


class NoWebhooksError(InvalidRequestError):
    code = "no_webhooks"

    def __init__(self, field: str = "webhook_url") -> None:
        super().__init__(
            field, "there are no webhooks in a Redis Cluster, where nothing would send them"
        )


class IdempotencyConflictError(MillpondError):
    code = "idempotency_conflict"
    http_status = 422

    def __init__(self, job_id: str) -> None:
        super().__init__(
            "this Idempotency-Key or job id was already used for a different request "
            f"(job {job_id}); send the same request again, or choose another key"
        )
        self.job_id = job_id


class QueueFullError(MillpondError):
    """``retry_after_s`` is estimated from the queue's recent drain rate; at least 1."""

    code = "queue_full"
    http_status = 429

    def __init__(self, depth: int, limit: int, retry_after_s: int = 1) -> None:
        super().__init__(f"the queue holds {depth} jobs, its limit is {limit}")
        self.depth = depth
        self.limit = limit
        self.retry_after_s = retry_after_s


class TenantFullError(QueueFullError):
    """``depth`` and ``limit`` count the tenant's queued and running jobs."""

    code = "tenant_full"

    def __init__(self, depth: int, limit: int, retry_after_s: int = 1) -> None:
        super().__init__(depth, limit, retry_after_s)
        self.args = (f"the tenant has {depth} unfinished jobs, the limit of its key is {limit}",)


class TenantStorageFullError(QueueFullError):
    """``depth`` and ``limit`` count the bytes of the tenant's unfinished requests and kept results."""

    code = "tenant_storage_full"

    def __init__(self, depth: int, limit: int, retry_after_s: int = 1) -> None:
        super().__init__(depth, limit, retry_after_s)
        self.args = (
            f"{depth:,} bytes are stored for the tenant, requests and results together, "
            f"and its limit is {limit:,}",
        )


class LimitExceededError(MillpondError):
    """``name`` is the limit that was exceeded; ``budgets`` says what is left of each (`Budget`)."""

    code = "limit_exceeded"
    http_status = 429

    def __init__(
        self, name: str, limit: int, retry_after_s: int, budgets: Sequence[Any] = ()
    ) -> None:
        super().__init__(f"this key may spend {limit} {name} a minute; wait {retry_after_s} s")
        self.name = name
        self.limit = limit
        self.retry_after_s = max(1, retry_after_s)
        self.budgets = tuple(budgets)


class JobNotFoundError(MillpondError):
    code = "job_not_found"
    http_status = 404

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id!r}: the id is unknown or its result has expired")
        self.job_id = job_id


class UnknownFileError(MillpondError):
    code = "file_not_found"
    http_status = 404

    def __init__(self, field: str, id: str) -> None:
        super().__init__(f"{field}: no file {id[:64]!r}: the id is unknown, or it was deleted")
        self.field = field


class FileInUseError(MillpondError):
    code = "file_in_use"
    http_status = 409

    def __init__(self, id: str) -> None:
        super().__init__(f"the batch that writes {id} still runs; cancel it first")


class FilesFullError(MillpondError):
    """``stored`` and ``limit`` are bytes of the tenant's uploaded files."""

    code = "tenant_files_full"
    http_status = 429

    def __init__(self, stored: int, limit: int) -> None:
        super().__init__(
            f"file: {stored:,} bytes of uploaded files are stored for the tenant, and its limit is "
            f"{limit:,}; delete some"
        )
        self.limit = limit


class UnknownBatchError(MillpondError):
    code = "batch_not_found"
    http_status = 404

    def __init__(self, field: str, id: str) -> None:
        super().__init__(f"{field}: no batch {id[:64]!r}: the id is unknown, or it is long over")
        self.field = field


class BatchEndedError(MillpondError):
    code = "batch_ended"
    http_status = 409

    def __init__(self, id: str, status: str) -> None:
        super().__init__(f"{id} cannot be cancelled: it is {status}")


class StorageUnavailableError(MillpondError):
    code = "storage_unavailable"
    http_status = 503

    def __init__(self, error: Exception) -> None:
        super().__init__(f"the storage of batch files cannot serve now: {error}")


class QueueUnavailableError(MillpondError):
    code = "queue_unavailable"
    http_status = 503


class WaitTimeoutError(MillpondError):
    code = "wait_timeout"
    http_status = 504


class ModelLoadError(MillpondError):
    code = "model_load_failed"


class UnsupportedModelError(ModelLoadError):
    code = "unsupported_model"


class ServerNotFoundError(MillpondError):
    code = "server_not_found"
