"""Worker ids: host, process id and a random part, since process ids are reused."""

import os
import socket
import uuid


def new_worker_id() -> str:
    """An id for this process' registry entry."""
    return f"{_of_process(os.getpid())}{uuid.uuid4().hex[:6]}"


def is_of_process(worker_id: str, pid: int) -> bool:
    """Whether this is the id of that process on this machine."""
    return worker_id.startswith(_of_process(pid))


def _of_process(pid: int) -> str:
    return f"{socket.gethostname()}-{pid}-"
