"""Enqueues coarse jobs for RQ. The only module of this service that imports RQ."""

import asyncio

import structlog
from redis import Redis
from redis.exceptions import RedisError
from rq import Queue, Retry
from rq.serializers import JSONSerializer

from millpond.background_jobs import (
    FAILURE_TTL_S,
    RESULT_TTL_S,
    RETRIES,
    BackgroundJob,
    rq_queue_name,
)

TIMEOUT_S = 3.0

log = structlog.get_logger("millpond.api")


class BackgroundJobs:
    """RQ's queues of the APIs whose home queue this is. RQ blocks, so it is used in a thread."""

    def __init__(self, redis_url: str, home: str) -> None:
        self._redis = Redis.from_url(
            redis_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        )
        self._home = home

    async def enqueue(self, job: BackgroundJob) -> None:
        """If it fails, that is logged: the background worker looks for what was left undone."""
        try:
            await asyncio.to_thread(self._enqueue, job)
        except RedisError as error:
            log.warning("not_enqueued", function=job.function, cause=str(error))

    def close(self) -> None:
        self._redis.close()

    def _enqueue(self, job: BackgroundJob) -> None:
        name = rq_queue_name(self._home, job.kind)
        Queue(name, connection=self._redis, serializer=JSONSerializer).enqueue_call(
            job.function,
            args=job.arguments,
            timeout=job.timeout_s,
            result_ttl=RESULT_TTL_S,
            failure_ttl=FAILURE_TTL_S,
            retry=Retry(RETRIES),
        )
