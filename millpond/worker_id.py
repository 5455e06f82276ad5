"""The names of workers: machine, process and a random part, for a process id comes again."""

import os
import socket
import uuid


def new_worker_id() -> str:
    """The id under which this process signs the registry."""
    return f"{_of_process(os.getpid())}{uuid.uuid4().hex[:6]}"


def is_of_process(worker_id: str, pid: int) -> bool:
    """Whether it is the id of that process on this machine."""
    return worker_id.startswith(_of_process(pid))


def _of_process(pid: int) -> str:
    return f"{socket.gethostname()}-{pid}-"
