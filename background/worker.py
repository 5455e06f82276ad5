"""RQ's worker of one of our queues. The only module of this service that imports RQ.

Jobs run in the worker's own process, one at a time, so they are short: a long one does a slice of its work
and enqueues itself again.
"""

import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Event
from types import FrameType

import structlog
from redis import Redis
from redis.exceptions import ConnectionError, TimeoutError
from rq import Queue, Retry, SimpleWorker
from rq.serializers import JSONSerializer

from millpond.background_jobs import (
    BATCHES,
    DELIVER_WEBHOOKS,
    FAILURE_TTL_S,
    LOOK_AFTER_BATCHES,
    RESULT_TTL_S,
    RETRIES,
    WEBHOOKS,
    BackgroundJob,
    rq_queue_name,
)
from millpond.queue.connection import connect_blocking
from millpond.settings import Settings

# RQ takes a worker that has been silent for this long for dead. Less 15 s, it is how long an idle one waits
# for a job before it looks around.
WORKER_TTL_S = 20
LOOK_AROUND_EVERY_S = 5
AWAY_RETRY_S = 0.5
# Of each kind, enqueued when a worker starts and regularly while it lives: they find what a killed
# process left.
PERIODIC: Mapping[str, Sequence[BackgroundJob]] = {
    BATCHES: (LOOK_AFTER_BATCHES,),
    WEBHOOKS: (DELIVER_WEBHOOKS,),
}

log = structlog.get_logger("millpond.background")


@dataclass(frozen=True, slots=True)
class Running:
    """What a job may use of the process that runs it. ``stopping`` is set when it has to end soon."""

    settings: Settings
    redis: Redis
    stopping: Event = field(default_factory=Event)

    def enqueue(self, job: BackgroundJob) -> None:
        self.queue(job.kind).enqueue_call(
            job.function,
            args=job.arguments,
            timeout=job.timeout_s,
            result_ttl=RESULT_TTL_S,
            failure_ttl=FAILURE_TTL_S,
            retry=Retry(RETRIES),
        )

    def queue(self, kind: str) -> Queue:
        name = rq_queue_name(self.settings.queue, kind)
        return Queue(name, connection=self.redis, serializer=JSONSerializer)


_RUNNING: ContextVar[Running] = ContextVar("running")


def running() -> Running:
    """For the functions that RQ calls."""
    return _RUNNING.get()


class Worker(SimpleWorker):
    """One that tells its job when it is to stop, and looks for unfinished work as soon as it starts."""

    process: Running
    kind: str

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        self.process.stopping.set()
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def run_maintenance_tasks(self) -> None:
        super().run_maintenance_tasks()  # type: ignore[no-untyped-call]
        if self.process.queue(self.kind).is_empty():
            for job in PERIODIC.get(self.kind, ()):
                self.process.enqueue(job)


def work(settings: Settings, kind: str) -> None:
    """Run the jobs of this kind until SIGTERM; then the one that runs may still end its slice."""
    redis = connect_blocking(settings.redis_url)
    _wait_for(redis)
    process = Running(settings, redis)
    _RUNNING.set(process)
    worker = Worker(
        [process.queue(kind)],
        connection=redis,
        serializer=JSONSerializer,
        worker_ttl=WORKER_TTL_S,
        maintenance_interval=LOOK_AROUND_EVERY_S,
        log_job_description=False,  # its arguments
    )
    worker.process, worker.kind = process, kind
    log.info("listening", rq_queue=worker.queues[0].name)
    worker.work(logging_level="WARNING")


def _wait_for(redis: Redis) -> None:
    told = False
    while True:
        try:
            redis.ping()
        except (ConnectionError, TimeoutError) as error:
            if not told:
                log.warning("queue_away", error=str(error))
                told = True
            time.sleep(AWAY_RETRY_S)
        else:
            return
