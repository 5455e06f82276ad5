"""``python -m api``: serve HTTP until SIGTERM."""

import asyncio
import logging
import sys

from api.app import create_app
from api.http.server import ApiServer, StructlogHandler
from api.watch import look_before_start
from millpond.errors import MillpondError
from millpond.logs import configure_logs
from millpond.settings import load_settings


def main() -> int:
    try:
        settings = load_settings()
        configure_logs(settings.log_level, process="api")
        logging.basicConfig(level=logging.WARNING, handlers=[StructlogHandler()])
        app = create_app(settings)
        asyncio.run(look_before_start(settings))
    except MillpondError as error:
        print(f"millpond api: {error}", file=sys.stderr)
        return 1
    server = ApiServer(app, settings)
    server.run_until_signal()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
