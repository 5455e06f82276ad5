"""Enqueues coarse jobs for RQ. The only module of this service that imports RQ."""

import asyncio

import structlog
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
from millpond.errors import InvalidRequestError
from millpond.queue.connection import connect_blocking
from millpond.queue.connection.address import Address, Kind

TIMEOUT_S = 3.0

log = structlog.get_logger("millpond.api")


class BackgroundJobs:
    """RQ's queues of the APIs whose home queue this is. RQ blocks, so it is used in a thread."""

    def __init__(self, redis_url: str, home: str) -> None:
        in_cluster = Address.parse(redis_url).kind is Kind.CLUSTER
        self._redis = None if in_cluster else connect_blocking(redis_url, timeout_s=TIMEOUT_S)
        self._home = home

    def check_possible(self) -> None:
        """Raises InvalidRequestError where RQ cannot run."""
        if self._redis is None:
            raise InvalidRequestError(
                "endpoint", "there are no batches in a Redis Cluster; submit the jobs themselves"
            )

    async def enqueue(self, job: BackgroundJob) -> None:
        """If it fails, that is logged: the background worker looks for what was left undone."""
        try:
            await asyncio.to_thread(self._enqueue, job)
        except RedisError as error:
            log.warning("not_enqueued", function=job.function, cause=str(error))

    def close(self) -> None:
        if self._redis is not None:
            self._redis.close()

    def _enqueue(self, job: BackgroundJob) -> None:
        assert self._redis is not None, "see check_possible"
        name = rq_queue_name(self._home, job.kind)
        Queue(name, connection=self._redis, serializer=JSONSerializer).enqueue_call(
            job.function,
            args=job.arguments,
            timeout=job.timeout_s,
            result_ttl=RESULT_TTL_S,
            failure_ttl=FAILURE_TTL_S,
            retry=Retry(RETRIES),
        )
