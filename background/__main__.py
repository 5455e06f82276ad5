"""``python -m background``: run RQ's workers until SIGTERM, a process for each of their queues."""

import functools
import logging
import sys

from background.processes import run_processes
from background.worker import work
from millpond.background_jobs import BACKGROUND_QUEUES
from millpond.errors import MillpondError
from millpond.logs import StructlogHandler, configure_logs
from millpond.queue.connection import connect_blocking
from millpond.settings import load_settings


def main() -> int:
    try:
        settings = load_settings()
        connect_blocking(settings.redis_url)  # whether it can be used at all; this opens nothing
    except MillpondError as error:
        print(f"millpond background: {error}", file=sys.stderr)
        return 1
    configure_logs(settings.log_level, process="background")
    logging.basicConfig(level=logging.WARNING, handlers=[StructlogHandler()])
    run_processes({kind: functools.partial(work, settings, kind) for kind in BACKGROUND_QUEUES})
    return 0


if __name__ == "__main__":
    sys.exit(main())
