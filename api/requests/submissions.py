"""Batches submits: jobs that arrive during a round trip to Redis share the next one."""

import asyncio

from api.access.gate import Caller
from millpond.errors import IdempotencyConflictError, QueueFullError
from millpond.messages import JobRequest
from millpond.models.prompts import PreparedPrompt
from millpond.queue.job_queue import JobQueue
from millpond.queue.submission import NewJob, Submission

MAX_BATCH_JOBS = 200

Answer = Submission | IdempotencyConflictError | QueueFullError


def new_job(request: JobRequest, prompt: PreparedPrompt, id: str | None, caller: Caller) -> NewJob:
    """The job to queue for a caller, with the counted tokens."""
    return NewJob(
        request,
        id,
        caller.tenant,
        tokens=prompt.budget_tokens,
        tenant_limit=caller.unfinished_jobs,
        prompt_tokens=len(prompt.token_ids),
    )


class SubmitBatcher:
    """A lone job goes out at once; the busier the API, the more jobs each round trip carries."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._waiting: list[tuple[NewJob, asyncio.Future[Answer]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def submit(self, job: NewJob) -> Submission:
        """As `JobQueue.submit`: returns once Redis has answered."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((job, future))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send(), name="submit-batcher")
        answer = await future
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _send(self) -> None:
        while self._waiting:
            batch = self._waiting[:MAX_BATCH_JOBS]
            del self._waiting[:MAX_BATCH_JOBS]
            try:
                answers = await self._queue.submit_many([job for job, _ in batch])
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():  # its request was cancelled
                        future.set_result(answer)
            except Exception as error:  # passed on to all who wait
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
