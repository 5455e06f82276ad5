"""An engine whose model runs elsewhere: behind an OpenAI-compatible server.

It owns an event loop that runs only inside `RemoteEngine.step`, so everything here happens in the
engine's thread. Each row is one streamed request; a step hands over what has come since the last.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Self, TypeVar

import structlog
import uvloop

from millpond.errors import ModelLoadError
from millpond.models.tokenization import Tokenizer
from worker.engines.base import (
    Capacity,
    EngineConfig,
    EngineEvent,
    EngineInfo,
    EngineNotReadyError,
    GenerationRequest,
    Rejection,
    RejectionCode,
)
from worker.engines.remote import wire
from worker.engines.remote.config import RemoteConfig
from worker.engines.remote.limit import AdaptiveLimit
from worker.engines.remote.probe import probe
from worker.engines.remote.retries import backoff_s
from worker.engines.remote.row import RemoteRow, RowError
from worker.engines.remote.upstream import (
    MisconfiguredError,
    RequestRefusedError,
    ServedModel,
    TurnedAwayError,
    Upstream,
    UpstreamError,
)
from worker.engines.scheduling.scheduler import Scheduler

T = TypeVar("T")

# A step without news ends after this, so that cancels and new rows do not wait for the upstream.
MAX_STEP_S = 0.05
# What comes within this of the first news is handed over with it.
LINGER_S = 0.002
CLOSE_S = 1.0
_OPENAI_KINDS = ("json_object", "json_schema")

log = structlog.get_logger("millpond.remote")


class RemoteEngine:
    """Holds up to ``slots`` rows, of which as many have a request open as the upstream bears.

    ``exact``: the upstream tells the token ids that it generates.
    """

    def __init__(
        self,
        config: EngineConfig,
        tokenizer: Tokenizer,
        remote: RemoteConfig,
        loop: asyncio.AbstractEventLoop,
        upstream: Upstream,
        served: ServedModel,
        *,
        exact: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._route = remote.route
        self._loop = loop
        self._upstream = upstream
        self._model = served.name
        self._exact = exact
        self._adapters = config.adapters
        context_tokens = config.preset.context_tokens
        if remote.route != "chat" and served.context_tokens is not None:
            context_tokens = min(context_tokens, served.context_tokens)
        self._slots = config.slots
        self._scheduler = Scheduler(
            tokenizer,
            slots=config.slots,
            kv_tokens=config.kv_tokens or config.slots * context_tokens,
            context_tokens=context_tokens,
            adapters=config.adapters,
        )
        self._limit = AdaptiveLimit(config.slots)
        self._rows: dict[str, RemoteRow] = {}
        self._waiting: deque[RemoteRow] = deque()
        self._open: dict[RemoteRow, asyncio.Task[None]] = {}
        self._touched: dict[RemoteRow, None] = {}
        self._news = asyncio.Event()
        self._paused_until_s = 0.0
        self._away = False
        self._broken: Exception | None = None
        self._info = EngineInfo(
            engine=config.engine,
            backend="remote",
            model=config.preset.name,
            dtype="unknown",
            device="remote",
            slots=config.slots,
            context_tokens=context_tokens,
        )

    @classmethod
    def connect(cls, config: EngineConfig, tokenizer: Tokenizer, remote: RemoteConfig) -> Self:
        """Find out what the upstream serves, and generate one token.

        Raises EngineNotReadyError while it cannot be reached or cannot serve yet, and ModelLoadError,
        naming the setting, when it never will.
        """
        loop = uvloop.new_event_loop()
        upstream = Upstream(remote)
        try:
            served, exact = loop.run_until_complete(
                probe(upstream, tokenizer, remote, config.adapters)
            )
        except BaseException as error:
            loop.run_until_complete(upstream.close())
            loop.close()
            if isinstance(error, MisconfiguredError):
                raise ModelLoadError(str(error)) from error
            if isinstance(error, UpstreamError):
                raise EngineNotReadyError(str(error)) from error
            raise
        log.info("upstream", place=upstream.place, model=served.name, token_ids=exact)
        return cls(config, tokenizer, remote, loop, upstream, served, exact=exact)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def num_rows(self) -> int:
        return self._scheduler.num_rows

    def warm_up(self) -> None:
        """`connect` has generated a token."""

    def capacity(self) -> Capacity:
        """Rows within the limit that adapts; more than that, up to ``slots``, would wait here."""
        free = self._scheduler.capacity()
        within_limit = max(0, self._limit.value - self.num_rows)
        return Capacity(min(free.free_slots, within_limit), free.free_tokens)

    def admit(self, requests: Sequence[GenerationRequest]) -> list[Rejection]:
        faults = {r.id: fault for r in requests if (fault := self._fault(r)) is not None}
        rejections = [Rejection(i, RejectionCode.INVALID, fault) for i, fault in faults.items()]
        requests = [r for r in requests if r.id not in faults]
        by_id = {r.id: r for r in requests}
        # The upstream keeps to the grammars; its own may write JSON in another way than ours.
        rejections += self._scheduler.admit(replace(r, grammar=None) for r in requests)
        while group := self._scheduler.next_group():
            for row in group:
                row.group_rows = len(group)
                remote = RemoteRow(by_id[row.id], row, exact=self._exact)
                self._rows[row.id] = remote
                self._waiting.append(remote)
        return rejections

    def _fault(self, request: GenerationRequest) -> str | None:
        """What this row asks for that the upstream's route does not support."""
        if self._route == "chat" and not request.messages:
            return (
                "this model is served by an upstream that takes whole conversations only: "
                "send messages or a prompt, without raw and without truncate"
            )
        for field in ("logprobs", "loop_repeats"):
            if getattr(request.sampling, field) is not None and not self._exact:
                return f"{field}: this model's upstream tells no token ids, which that needs"
        if request.sampling.max_reasoning_tokens is not None:
            return "max_reasoning_tokens: this model's upstream cannot be made to end its reasoning"
        constraint = None if request.grammar is None else request.grammar.constraint
        # Only vLLM is known to take the others, and it tells token ids.
        if constraint is not None and constraint.kind not in _OPENAI_KINDS and not self._exact:
            return f"{constraint.field}: this model's upstream knows response_format only"
        return None

    def cancel(self, ids: Sequence[str]) -> None:
        self._scheduler.cancel(ids)

    def step(self) -> list[EngineEvent]:
        """Return what has arrived; waits for something to arrive, `MAX_STEP_S` at most.

        Raises MisconfiguredError when the upstream takes no request any more.
        """
        ended = self._scheduler.take_ended()
        cancelled = [self._rows[row.id] for row in ended if row.id in self._rows]
        for row in cancelled:
            row.cancel()
            self._touched[row] = None
        self._loop.run_until_complete(self._advance(cancelled))
        if self._broken is not None:
            raise self._broken
        touched, self._touched = list(self._touched), {}
        for row in touched:
            if row.ended:
                del self._rows[row.id]
        over = [row for row in ended if row not in (c.row for c in cancelled)]
        return self._scheduler.collect((*over, *(row.row for row in touched)))

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._loop.run_until_complete(self._close())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _close(self) -> None:
        await _end(self._open.values())
        await self._upstream.close()

    async def _advance(self, cancelled: Iterable[RemoteRow]) -> None:
        await _end([self._open[row] for row in cancelled if row in self._open])
        self._open_requests()
        if not self._touched and self._rows:
            await _within(self._news.wait(), MAX_STEP_S)
        if self._open:
            await asyncio.sleep(LINGER_S)
        # There may be no further step for a while, and an open stream would be generated to the end.
        closing = [task for row, task in self._open.items() if row.ended]
        if closing:
            await asyncio.wait(closing, timeout=MAX_STEP_S)
        self._news.clear()

    def _open_requests(self) -> None:
        """Open requests of rows that wait, oldest first, as far as the limit and the pauses allow."""
        now_s = time.monotonic()
        later: deque[RemoteRow] = deque()
        while self._waiting and self._paused_until_s <= now_s:
            if len(self._open) >= self._limit.value:
                break
            row = self._waiting.popleft()
            if row.ended:
                continue
            if row.not_before_s > now_s:
                later.append(row)
                continue
            self._open[row] = self._loop.create_task(self._run(row, self._limit.ticket()))
        self._waiting.extendleft(reversed(later))

    async def _run(self, row: RemoteRow, ticket: int) -> None:
        """One request of a row, from its opening to whatever ends it."""
        try:
            await self._stream(row)
        except RowError as error:
            row.fail(str(error), retryable=error.retryable)
        except UpstreamError as error:
            if not row.ended:
                self._broke_off(row, error, ticket)
        except Exception as error:
            self._broken = error
        finally:
            del self._open[row]
            self._touch(row)

    async def _stream(self, row: RemoteRow) -> None:
        body = wire.body(
            row.request,
            row.begin(),
            route=self._route,
            model=self._adapters.get(row.request.adapter or "", self._model),
            end_token_ids=sorted(self._tokenizer.eos_token_ids),
            exact=self._exact,
        )
        accepted = False
        async with aclosing(self._upstream.generate(body)) as chunks:
            async for chunk in chunks:
                if not accepted:
                    accepted = True
                    self._accepted()
                row.take(chunk, len(self._open))
                self._touch(row)
                if row.ended and chunk.end is None:
                    return  # found here and not there: closing the stream stops it there, too
        row.stream_over()

    def _accepted(self) -> None:
        self._limit.accepted(len(self._open))
        if self._away:
            log.info("upstream_back", limit=self._limit.value)
            self._away = False

    def _broke_off(self, row: RemoteRow, error: UpstreamError, ticket: int) -> None:
        """Queue the row for another try, or end it."""
        now_s = time.monotonic()
        if isinstance(error, MisconfiguredError):
            self._broken = error
            return
        if isinstance(error, RequestRefusedError):
            row.fail(str(error))
            return
        if error.overloaded and self._limit.overloaded(ticket, len(self._open)):
            log.info("upstream_overloaded", limit=self._limit.value, row=row.id)
        if isinstance(error, TurnedAwayError):
            if not self._away:
                log.warning(
                    "upstream_turns_away", cause="busy" if error.overloaded else "unreachable"
                )
            self._away = True
        elif not row.failed():
            row.fail(f"the upstream fails again and again: {error}", retryable=True)
            return
        row.refusals += 1
        delay_s = backoff_s(row.refusals, random.random())  # noqa: S311 (no secret)
        row.not_before_s = now_s + delay_s
        if error.retry_after_s is not None:
            self._paused_until_s = max(self._paused_until_s, now_s + error.retry_after_s)
        self._waiting.appendleft(row)

    def _touch(self, row: RemoteRow) -> None:
        if self._rows.get(row.id) is row:
            self._touched[row] = None
            self._news.set()


async def _within(what: Awaitable[object], timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await what
    except TimeoutError:
        return


async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel and wait until their connections are closed, or too long."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    if ending:
        await asyncio.wait(ending, timeout=CLOSE_S)
