"""``python -m api``: serve HTTP until SIGTERM, with one process or several."""

import asyncio
import logging
import sys

from api.app import create_app
from api.http.server import ApiServer
from api.processes import ONE_OF_SEVERAL, serve
from api.watch import look_before_start
from millpond.errors import MillpondError
from millpond.logs import StructlogHandler, configure_logs
from millpond.settings import load_settings
from millpond.tracing import tracing


def main() -> int:
    try:
        settings = load_settings()
        configure_logs(settings.log_level, process="api")
        logging.basicConfig(level=logging.WARNING, handlers=[StructlogHandler()])
        if settings.api_processes > 1:
            create_app(settings)  # a wrong model is told before the processes start
            asyncio.run(look_before_start(settings))
            asyncio.run(serve(settings))
            return 0
        with tracing("millpond-api") as tracer:
            app = create_app(settings, tracer)
            asyncio.run(look_before_start(settings))
            server = ApiServer(app, settings)
            server.run_until_signal(shared_port=ONE_OF_SEVERAL in sys.argv[1:])
    except MillpondError as error:
        print(f"millpond api: {error}", file=sys.stderr)
        return 1
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
