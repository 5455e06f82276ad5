"""Whether jobs are accepted here and will be worked on, and if not, why. Looked at once a second."""

import asyncio
import math

from api.answers.schemas import Readiness
from api.directory import Directory
from millpond.errors import QueueUnavailableError
from millpond.messages.worker_state import RegisteredWorker, WorkerPhase

MAX_AGE_S = 1.0
REDIS_PATIENCE_S = 2.0


class ReadinessCheck:
    """However many ask, Redis is asked once in ``max_age_s``."""

    def __init__(self, directory: Directory, max_age_s: float = MAX_AGE_S) -> None:
        self._directory = directory
        self._max_age_s = max_age_s
        self._looked_s = -math.inf
        self._found: Readiness | None = None
        self._lock = asyncio.Lock()

    async def look(self) -> Readiness:
        loop = asyncio.get_running_loop()
        async with self._lock:
            if self._found is None or loop.time() - self._looked_s > self._max_age_s:
                self._found = await self._look()
                self._looked_s = loop.time()
            return self._found

    async def _look(self) -> Readiness:
        workers: list[RegisteredWorker] = []
        reason: str | None = None
        try:
            async with asyncio.timeout(REDIS_PATIENCE_S):
                for served in self._directory.queues:
                    workers += (await served.results.queue_state()).workers
                await self._directory.home.queue.try_write()
        except TimeoutError:
            reason = "Redis does not answer"
        except QueueUnavailableError:
            reason = "Redis takes no new jobs: it is away, starting, full or a replica"
        alive = [worker for worker in workers if worker.alive]
        redis = reason is None
        tokenizer = self._directory.home.tokenizing.ready
        if not tokenizer:
            reason = reason or "the model's tokenizer is not loaded"
        if not alive:
            reason = reason or "no worker is alive"
        elif all(worker.state.state is WorkerPhase.HUNG for worker in alive):
            reason = reason or "the engine of every worker hangs"
        return Readiness(
            ready=reason is None,
            reason=reason,
            redis=redis,
            tokenizer=tokenizer,
            workers_alive=len(alive),
            workers_ready=sum(worker.ready for worker in alive),
        )
