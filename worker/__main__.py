"""``python -m worker``: load the model, take jobs, until SIGTERM."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog
import uvloop
from redis.asyncio import Redis

from millpond.errors import MillpondError, QueueUnavailableError
from millpond.logs import StructlogHandler, configure_logs
from millpond.messages.worker_state import WorkerPhase, WorkerState
from millpond.models.presets import Preset
from millpond.queue.connection import Connections
from millpond.queue.directory import AnnouncedQueue, QueueDirectory
from millpond.queue.job_queue import JobQueue
from millpond.queue.membership import Membership
from millpond.queue.server_check import check_server
from millpond.queue.worker_id import new_worker_id
from millpond.settings import Settings, load_settings
from millpond.tasks import end_tasks
from millpond.tracing import tracing
from worker.assembly import identity_of, prepare_folder, window_policy, worker_engine
from worker.jobs.observer import JobObserver
from worker.metrics import WorkerMetrics
from worker.vllm_server import VllmServer, running_vllm
from worker.worker import EngineFailedError, Worker, WorkerOptions

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

log = structlog.get_logger("millpond.worker")

SERVER_RETRY_S = 0.25

T = TypeVar("T")


async def serve(settings: Settings, tracer: "Tracer | None" = None) -> bool:
    """Run one worker until SIGTERM or SIGINT. False: the engine hangs, so exit hard."""
    preset = settings.preset()
    folder = await asyncio.to_thread(prepare_folder, settings, preset)
    identity = await asyncio.to_thread(identity_of, settings, preset, folder)
    own = new_worker_id()
    async with contextlib.AsyncExitStack() as ending:
        connections = Connections(settings.redis_url)
        ending.push_async_callback(connections.aclose)
        redis = connections.to_queue(settings.queue)
        state = WorkerState(
            state=WorkerPhase.LOADING,
            model=preset.name,
            model_identity=identity,
            visible_devices=settings.visible_devices,
        )
        preset = replace(preset, name=await join(redis, settings, own, state))
        await announce(connections, settings, preset)
        vllm = None
        if settings.engine == "vllm":
            assert folder is not None
            vllm = await ending.enter_async_context(running_vllm(settings, preset, folder))
        tokenizer, build = await asyncio.to_thread(
            worker_engine,
            settings,
            preset,
            folder,
            upstream=None if vllm is None else vllm.upstream,
        )
        metrics = WorkerMetrics(settings.queue, preset.name)
        worker = Worker(
            JobQueue(redis, settings.queue, settings.queue_options()),
            build,
            tokenizer,
            preset,
            WorkerOptions(
                worker_id=own,
                model_identity=identity,
                window=window_policy(settings),
                group_padded_tokens=settings.group_padded_tokens,
                heartbeat_s=settings.heartbeat_s,
                grace_s=settings.grace_s,
                delta_interval_s=settings.delta_interval_ms / 1000,
                checkpoint_tokens=settings.checkpoint_tokens,
                turn_limit_s=settings.turn_limit_s,
                visible_devices=settings.visible_devices,
            ),
            metrics,
            traces(tracer, settings.queue, preset.name, own),
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, worker.stop)
        with exported(metrics, settings):
            if vllm is None:
                return await worker.run()
            return await _run_while_it_lives(worker, vllm)


async def _run_while_it_lives(worker: Worker, vllm: VllmServer) -> bool:
    """Run the worker; its jobs go back to the queue if vLLM does not stay up. Raises VllmFailedError."""
    failing = asyncio.create_task(vllm.failed(), name="vllm-failed")
    running = asyncio.create_task(worker.run(), name="worker")
    try:
        await asyncio.wait({running, failing}, return_when=asyncio.FIRST_COMPLETED)
        if failing.done():
            worker.stop()
            worker.stop()  # no row will end
            await running
            raise failing.result()
        return await running
    finally:
        await end_tasks(failing)


def traces(tracer: "Tracer | None", queue: str, model: str, own: str) -> list[JobObserver]:
    if tracer is None:
        return []
    from worker.traces import WorkerTraces

    return [WorkerTraces(tracer, queue, model, own)]


@contextlib.contextmanager
def exported(metrics: WorkerMetrics, settings: Settings) -> Iterator[None]:
    """Serve the metrics, if the settings say where. Raises MetricsPortError."""
    if settings.metrics_port is None:
        yield
        return
    with metrics.served(settings.metrics_host, settings.metrics_port) as port:
        log.info("metrics", host=settings.metrics_host, port=port)
        yield


async def join(redis: Redis, settings: Settings, worker: str, state: WorkerState) -> str:
    """Wait for the server, check that it is fit for a queue, and join the queue. Returns the
    model's name there.

    Raises UnsuitableServerError and JoinRefusedError.
    """

    async def check_and_join() -> str:
        await check_server(redis, allow_eviction=settings.allow_eviction)
        return await Membership(redis, settings.queue).join(worker, state)

    return await _once_reached(check_and_join)


async def _once_reached(call: Callable[[], Awaitable[T]]) -> T:
    """Retry until Redis can serve."""
    while True:
        try:
            return await call()
        except QueueUnavailableError as error:
            log.warning("queue_away", error=str(error))
            await asyncio.sleep(SERVER_RETRY_S)


async def announce(connections: Connections, settings: Settings, preset: Preset) -> None:
    """Tell the APIs of this server that the queue serves this model."""
    about = AnnouncedQueue(
        model=preset.name,
        source=preset.source if Path(preset.source).is_absolute() else settings.model_name,
        engine=settings.engine,
        adapters=preset.adapters,
        remote_route=settings.remote_route,
    )
    directory = QueueDirectory(connections.to_directory())
    await _once_reached(lambda: directory.announce(settings.queue, about))


def main() -> int:
    try:
        settings = load_settings()
        configure_logs(settings.log_level, process="worker")
        logging.basicConfig(level=logging.WARNING, handlers=[StructlogHandler()])
        if settings.visible_devices is not None:
            # Read by CUDA when torch, or vLLM, looks for cards first.
            os.environ["CUDA_VISIBLE_DEVICES"] = settings.visible_devices
        with tracing("millpond-worker") as tracer:
            clean = uvloop.run(serve(settings, tracer))
    except (MillpondError, EngineFailedError) as error:
        print(f"millpond worker: {error}", file=sys.stderr)
        return 1
    if not clean:
        log.error("exiting_hard", cause="the engine's thread does not come back")
        sys.stderr.flush()
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
