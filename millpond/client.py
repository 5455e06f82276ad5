"""The client library: submit jobs and read their results over Redis, without HTTP.

`Client` is async. `BlockingClient` is the same client behind a thread's event loop: its methods are
made from the async ones, so there is one implementation and one set of docstrings.
"""

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, aclosing
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

from anyio.from_thread import BlockingPortal, start_blocking_portal

from millpond.errors import (
    IdempotencyConflictError,
    InvalidRequestError,
    JobNotFoundError,
    QueueFullError,
    WaitTimeoutError,
)
from millpond.listing import MAX_PAGE, JobLists, ListedJob, Page, retry_key
from millpond.messages import JobEvent, JobRequest, JobResult, JobStatus, job_id_from_key
from millpond.models.limits import check_limits
from millpond.models.presets import Preset
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue, QueueOptions
from millpond.queue.results import JobView, QueueState, Results
from millpond.queue.submission import DEFAULT_TENANT, NewJob, Submission
from millpond.queue.subscriptions import Subscriptions
from millpond.webhooks.senders import check_sent

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_URL = "redis://127.0.0.1:6379/0"


class Client:
    """One queue on one server. Use it as ``async with Client(url) as client``.

    Every method raises QueueUnavailableError when Redis cannot serve. ``options`` matter to submit
    and cancel; use those of the deployment if they are not the defaults. ``preset`` is the served model, if
    known: a job that breaks its limits is then refused at submit, as over HTTP. Without it such a job is
    queued and fails.
    """

    def __init__(
        self,
        redis_url: str = DEFAULT_URL,
        queue: str = "default",
        *,
        tenant: str = DEFAULT_TENANT,
        options: QueueOptions | None = None,
        preset: Preset | None = None,
    ) -> None:
        self._preset = preset
        self._redis_url = redis_url
        self._redis = connect(redis_url, queue)
        self._subscriptions = Subscriptions(self._redis)
        self._queue = JobQueue(self._redis, queue, options)
        self._results = Results(self._redis, queue, self._subscriptions)
        self._lists = JobLists(self._redis, self._queue.keys)
        self._tenant = tenant

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._subscriptions.close()
        await self._redis.aclose()

    async def submit(
        self,
        prompt: str | JobRequest,
        /,
        *,
        id: str | None = None,
        idempotency_key: str | None = None,
        **params: Any,
    ) -> str:
        """Queue one job and return its id.

        ``params`` are the fields of JobRequest, such as ``max_tokens=64``. Choose the ``id`` yourself
        to subscribe before submitting; a repeated id or key with the same request is harmless.
        Raises pydantic.ValidationError for bad fields, InvalidRequestError for ``params`` beside a whole
        JobRequest, for both an id and a key, and for a job that breaks the model's limits, if the client
        knows them, NoWebhooksError in a Redis Cluster, and what `JobQueue.submit` raises.
        """
        if id is not None and idempotency_key is not None:
            raise InvalidRequestError("id", "give an id or an idempotency_key, not both")
        request = _request(prompt, params)
        if request.webhook_url is not None:
            check_sent(self._redis_url)
        if self._preset is not None:
            check_limits(request, self._preset)
        if idempotency_key is not None:
            id = job_id_from_key(self._tenant, idempotency_key)
        return (await self._queue.submit(request, id=id, tenant=self._tenant)).id

    async def submit_many(
        self, jobs: Sequence[NewJob]
    ) -> list[Submission | IdempotencyConflictError | QueueFullError]:
        """Queue many jobs in one round trip; each is accepted or refused on its own."""
        return await self._queue.submit_many(jobs)

    async def get(self, id: str) -> JobView:
        """The job's current state. Raises JobNotFoundError."""
        return await self._results.get(id, tenant=self._tenant)

    async def result(self, id: str, timeout_s: float = 600.0) -> JobResult:
        """Wait until the job has ended. Raises WaitTimeoutError, JobNotFoundError."""
        view = await self._results.wait(id, timeout_s, tenant=self._tenant)
        if view.result is None:
            raise WaitTimeoutError(f"job {id} is still {view.status} after {timeout_s:g} s")
        return view.result

    async def generate(
        self, prompt: str | JobRequest, /, *, timeout_s: float = 600.0, **params: Any
    ) -> JobResult:
        """Submit a job and wait for its result."""
        return await self.result(await self.submit(prompt, **params), timeout_s)

    async def watch(self, id: str, after: str = "0") -> AsyncGenerator[JobEvent, None]:
        """The job's events, oldest first, up to ``finished``. ``after`` is an ``event_id`` to resume from."""
        events = self._results.subscribe(id, after, tenant=self._tenant)
        # A caller that stops early must not leave a subscription behind.
        async with aclosing(cast(AsyncGenerator[JobEvent, None], events)):
            async for event in events:
                yield event

    async def cancel(self, id: str) -> JobStatus:
        """Cancel the job: at once if queued, within a heartbeat if running. Raises JobNotFoundError."""
        status = await self._queue.cancel(id, tenant=self._tenant)
        if status is None:
            raise JobNotFoundError(id)
        return status

    async def list_jobs(
        self, status: JobStatus, *, limit: int = MAX_PAGE, cursor: str | None = None
    ) -> Page:
        """The jobs of one status, in pages. See `JobLists.jobs`."""
        return await self._lists.jobs(status, tenant=self._tenant, limit=limit, cursor=cursor)

    async def dead(
        self, *, tenant: str | None = None, limit: int = MAX_PAGE, cursor: str | None = None
    ) -> Page:
        """The dead letters, newest first, in pages: of one tenant, or of all."""
        return await self._lists.dead(tenant=tenant, limit=limit, cursor=cursor)

    async def dead_letter(self, id: str) -> tuple[ListedJob, JobRequest]:
        """A dead letter and what was asked. Raises JobNotFoundError."""
        return await self._lists.dead_letter(id)

    async def retry_dead(self, id: str) -> str:
        """Run a dead letter again, as a new job of its tenant with the same body; returns its id.

        Safe to repeat: the new id follows from the old one. Raises JobNotFoundError, QueueFullError.
        """
        job, body = await self._lists.dead_letter(id)
        new_id = job_id_from_key(job.tenant, retry_key(id))
        await self._queue.submit(body, id=new_id, tenant=job.tenant)
        await self._queue.forget_dead(id)
        return new_id

    async def queue_state(self) -> QueueState:
        """Depth, running jobs, totals and workers."""
        return await self._results.queue_state()


def _request(prompt: str | JobRequest, params: dict[str, Any]) -> JobRequest:
    if isinstance(prompt, str):
        return JobRequest(prompt=prompt, **params)
    if params:
        raise InvalidRequestError(
            next(iter(params)), "is a field of the JobRequest; set it there, not beside it"
        )
    return prompt


def _blocking(
    method: Callable[Concatenate[Client, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate["BlockingClient", P], R]:
    @functools.wraps(method)
    def call(self: "BlockingClient", *args: P.args, **kwargs: P.kwargs) -> R:
        bound = functools.partial(method, self._client, *args, **kwargs)
        return self._portal.call(bound)  # type: ignore[no-any-return]

    return cast(Callable[Concatenate["BlockingClient", P], R], call)


class BlockingClient:
    """`Client` for programs without an event loop: ``with BlockingClient(url) as client``."""

    _portal: BlockingPortal
    _client: Client

    def __init__(
        self,
        redis_url: str = DEFAULT_URL,
        queue: str = "default",
        *,
        tenant: str = DEFAULT_TENANT,
        options: QueueOptions | None = None,
        preset: Preset | None = None,
    ) -> None:
        self._make = functools.partial(
            Client, redis_url, queue, tenant=tenant, options=options, preset=preset
        )
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._portal = self._stack.enter_context(start_blocking_portal())
        self._client = self._portal.call(_call, self._make)
        self._stack.callback(lambda: self._portal.call(self._client.close))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    submit = _blocking(Client.submit)
    submit_many = _blocking(Client.submit_many)
    get = _blocking(Client.get)
    result = _blocking(Client.result)
    generate = _blocking(Client.generate)
    cancel = _blocking(Client.cancel)
    list_jobs = _blocking(Client.list_jobs)
    dead = _blocking(Client.dead)
    dead_letter = _blocking(Client.dead_letter)
    retry_dead = _blocking(Client.retry_dead)
    queue_state = _blocking(Client.queue_state)

    def watch(self, id: str, after: str = "0") -> Iterator[JobEvent]:
        """See `Client.watch`."""
        events = self._client.watch(id, after)
        try:
            while True:
                try:
                    yield self._portal.call(events.__anext__)
                except StopAsyncIteration:
                    return
        finally:
            self._portal.call(events.aclose)


async def _call(make: Callable[[], R]) -> R:
    """Run a plain callable on the portal's loop."""
    return make()
