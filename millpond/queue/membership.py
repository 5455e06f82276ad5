"""Which processes may use a queue: a worker joins only a queue of its own model and version.

All methods raise QueueUnavailableError when Redis cannot serve.
"""

import asyncio

import structlog
from redis.asyncio import Redis

from millpond.errors import MillpondError
from millpond.messages.worker_state import WORKER_ALIVE_MS, WorkerState
from millpond.models.identity import difference
from millpond.queue.keys import Keys
from millpond.queue.scripts import Scripts, raising_unavailable
from millpond.queue.server_check import check_server

# Version of the keys' layout and of the scripts. Processes of two versions must not use one queue at the same
# time, so raise it with every change that older scripts would not understand.
QUEUE_VERSION = 2

POLL_S = 0.5

log = structlog.get_logger("millpond.queue.membership")


class JoinRefusedError(MillpondError):
    """This process may not use the queue."""

    code = "join_refused"


class QueueVersionError(JoinRefusedError):
    def __init__(self, queue: str, theirs: str) -> None:
        older = theirs.isdecimal() and int(theirs) < QUEUE_VERSION
        super().__init__(
            f"the queue {queue} is in use in version {theirs}, and this process speaks version "
            f"{QUEUE_VERSION}: "
            + (
                "let the older workers finish its jobs and stop them, or take another queue"
                if older
                else "update this installation, or take another queue"
            )
        )


class OtherModelError(JoinRefusedError):
    """``alive`` workers serve another model here, or ``unfinished`` jobs wait for it."""

    def __init__(
        self, queue: str, own: WorkerState, model: str, identity: str, alive: int, unfinished: int
    ) -> None:
        super().__init__(
            f"the queue {queue} serves the model {model} ({identity}; other workers alive: {alive}, "
            f"unfinished jobs: {unfinished}), and this worker has {own.model} ({own.model_identity}): "
            f"{difference(identity, own.model_identity or '')}. Give it the same model, take another "
            "queue, or wait until this one is empty and its workers are gone"
        )
        self.unfinished = unfinished


class Membership:
    def __init__(self, redis: Redis, queue: str) -> None:
        self._queue = queue
        self._redis = redis
        self._keys = Keys(queue)
        self._scripts = Scripts(redis, self._keys)

    async def check_version(self) -> None:
        """The check of a process that is not a worker, at its start. Raises QueueVersionError."""
        await self._join("", None)

    async def still_agrees(self) -> None:
        """Whether nobody has taken the queue to another version since. Raises QueueVersionError."""
        with raising_unavailable():
            found = await self._redis.hget(self._keys["about"], "version")
        if found is not None and int(found) != QUEUE_VERSION:
            raise QueueVersionError(self._queue, str(int(found)))

    async def join(self, worker: str, state: WorkerState) -> str:
        """Sign the registry for the first time; the name under which the queue serves this model.

        A worker that was killed looks alive for a while, so this waits for others of another model to
        be silent for long enough, if nothing else stands in the way. Raises JoinRefusedError.
        """
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            try:
                return await self._join(worker, state)
            except _OthersThereError as error:
                if error.beat_age_ms < (loop.time() - began_s) * 1000 or error.refusal.unfinished:
                    raise error.refusal from None
                log.info("waiting_for_other_workers", silent_ms=error.beat_age_ms)
            await asyncio.sleep(POLL_S)

    async def _join(self, worker: str, state: WorkerState | None) -> str:
        model, identity, entry = "", "", b""
        if state is not None:
            model, identity, entry = state.model, state.model_identity or "", state.to_json()
        answer, *rest = await self._scripts.run(
            "join", worker, QUEUE_VERSION, model, identity, entry, WORKER_ALIVE_MS
        )
        if answer == b"joined":
            return str(rest[0].decode())
        if answer == b"version":
            raise QueueVersionError(self._queue, rest[0].decode())
        assert state is not None
        name, theirs, alive, unfinished, beat_age_ms = rest
        refusal = OtherModelError(
            self._queue, state, name.decode(), theirs.decode(), alive, unfinished
        )
        raise _OthersThereError(refusal, beat_age_ms)


async def check_queue(redis: Redis, queue: str, *, allow_eviction: bool) -> None:
    """The checks that `millpond up` and the API make before they start.

    Raises UnsuitableServerError, QueueVersionError, and QueueUnavailableError.
    """
    await check_server(redis, allow_eviction=allow_eviction)
    await Membership(redis, queue).check_version()


class _OthersThereError(Exception):
    """``beat_age_ms``: since any of them was heard of; -1 if none lives."""

    def __init__(self, refusal: OtherModelError, beat_age_ms: int) -> None:
        super().__init__()
        self.refusal = refusal
        self.beat_age_ms = beat_age_ms
