"""The Redis keys of files and batches. They have a hash tag of their own, beside that of the home queue.

Scripts get these names through ``KEYS``; where a name below ends in a colon it is a prefix, and the script
appends the id of a file or a batch, or a tenant.
"""

from millpond.queue.keys import Keys

BATCH_KEYS: dict[str, str] = {
    # Hash: the record of a file, see `millpond.batches.files.FileRecord`.
    "file": "file:",
    # List of "OBJECT BYTES": what a file consists of, in order.
    "parts": "parts:",
    # Sorted set of a tenant: file id -> server time in ms of its creation.
    "files": "files:",
    # Hash, tenant -> bytes of the files that it has uploaded.
    "uploaded": "uploaded",
    # Sorted set, id of a file that is complete -> server time in ms at which it is deleted.
    "expiring": "expiring",
    # Sorted set, name of a stored object -> server time in ms from which it may be removed from the storage.
    # An object is in it before it is written, and leaves it when a record names it.
    "doomed": "doomed",
    # Hash: the record of a batch, see `millpond.batches.records.BatchRecord`.
    "batch": "batch:",
    # Sorted set of a tenant: batch id -> server time in ms of its creation.
    "batches": "batches:",
    # Set of the ids of batches that have not ended.
    "unfinished": "unfinished",
    # Set of the ids of batches that have ended, and whose webhooks are not yet owed.
    "untold": "untold",
    # List of "OBJECT FIRST_PLACE" of a batch: its checked rows, in the order in which they run.
    "rows": "rows:",
    # Bitmap of a batch: the places of the rows that are written, or dropped.
    "done": "done:",
}


class BatchKeys:
    """The names for the APIs with this home queue. Raises InvalidRequestError for a bad queue name."""

    def __init__(self, home: str) -> None:
        # No queue can be called so: its name has no slash.
        self._base = Keys(home).beside("batches")

    def __getitem__(self, name: str) -> str:
        return self._base + BATCH_KEYS[name]

    def of(self, name: str, id: str) -> str:
        """The key with this prefix and the id of a file, a batch or a tenant."""
        return self[name] + id
