"""``python -m worker``: load the model, take jobs, until SIGTERM."""

import asyncio
import os
import signal
import socket
import sys
import uuid

import structlog
import uvloop

from millpond.connection import connect
from millpond.errors import MillpondError
from millpond.logs import configure_logs
from millpond.queue import JobQueue
from millpond.settings import Settings, load_settings
from worker.assembly import window_policy, worker_engine
from worker.worker import EngineFailedError, Worker, WorkerOptions

log = structlog.get_logger("millpond.worker")


def worker_id() -> str:
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


async def serve(settings: Settings) -> bool:
    """Run one worker until SIGTERM or SIGINT. False: the engine hangs, so exit hard."""
    loop = asyncio.get_running_loop()
    preset = settings.preset()
    tokenizer, build = await asyncio.to_thread(worker_engine, settings, preset)
    redis = connect(settings.redis_url)
    worker = Worker(
        JobQueue(redis, settings.queue, settings.queue_options()),
        build,
        tokenizer,
        preset,
        WorkerOptions(
            worker_id=worker_id(),
            window=window_policy(settings),
            group_padded_tokens=settings.group_padded_tokens,
            heartbeat_s=settings.heartbeat_s,
            grace_s=settings.grace_s,
            delta_interval_s=settings.delta_interval_ms / 1000,
        ),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    try:
        return await worker.run()
    finally:
        await redis.aclose()


def main() -> int:
    try:
        settings = load_settings()
        configure_logs(settings.log_level, process="worker")
        clean = uvloop.run(serve(settings))
    except (MillpondError, EngineFailedError) as error:
        print(f"millpond worker: {error}", file=sys.stderr)
        return 1
    if not clean:
        log.error("engine_hangs", action="exiting without it")
        sys.stderr.flush()
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
