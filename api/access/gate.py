"""Authentication and rate limits: API keys, their scopes and limits."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from api.answers.errors import ForbiddenError, PriorityForbiddenError, UnauthenticatedError
from millpond.access.api_keys import ApiKey, ApiKeys, KnownKey, Scope, key_id, opens
from millpond.access.rate_limits import REQUESTS, TOKENS, Budget, RateLimiter
from millpond.messages import Priority
from millpond.queue.submission import DEFAULT_TENANT

# A revoked key works for at most this much longer.
REMEMBER_S = 2.0
MAX_REMEMBERED = 4_096


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose jobs a request may read and submit. ``key`` is None where no keys are required."""

    tenant: str = DEFAULT_TENANT
    key: ApiKey | None = None

    @property
    def sees_workers(self) -> bool:
        """Whether the workers' names, which are those of their machines, are shown to it."""
        return self.key is None or Scope.ADMIN in self.key.scopes

    @property
    def priorities(self) -> tuple[Priority, ...]:
        """Those that its jobs may have, the most urgent first."""
        allowed = None if self.key is None else self.key.priorities
        return tuple(p for p in Priority if allowed is None or p in allowed)

    def check_priority(self, priority: Priority) -> None:
        """Raises PriorityForbiddenError."""
        if priority not in self.priorities:
            raise PriorityForbiddenError(priority, self.priorities)

    @property
    def unfinished_jobs(self) -> int | None:
        """How many queued and running jobs the tenant may have."""
        return None if self.key is None else self.key.limits.unfinished_jobs

    @property
    def stored_bytes(self) -> int | None:
        """How much may be stored for the tenant; None: what the queue allows everybody."""
        return None if self.key is None else self.key.limits.stored_bytes


ANYBODY = Caller()


class Gate:
    """``required`` false admits everybody, as the default tenant with every scope."""

    def __init__(self, keys: ApiKeys, limiter: RateLimiter, *, required: bool) -> None:
        self._keys = keys
        self._limiter = limiter
        self._required = required
        self._remembered: OrderedDict[str, tuple[float, KnownKey | None]] = OrderedDict()

    async def admit(self, token: str | None, scope: Scope) -> tuple[Caller, list[Budget]]:
        """Returns the caller, and what is left of the key's limits after this request.

        Raises UnauthenticatedError, the same for a key that is missing, malformed, unknown, revoked or
        wrong; ForbiddenError; LimitExceededError; QueueUnavailableError.
        """
        if not self._required:
            return ANYBODY, []
        id = None if token is None else key_id(token)
        if token is None or id is None:
            raise UnauthenticatedError
        known = await self._look_up(id)
        if not opens(token, known) or known is None:
            raise UnauthenticatedError
        key = known.key
        if scope not in key.scopes:
            raise ForbiddenError(scope)
        limits = _limits(key)
        budgets = await self._limiter.spend(key.id, limits, {REQUESTS: 1}) if limits else []
        return Caller(key.tenant, key), budgets

    async def spend_tokens(self, caller: Caller, tokens: int) -> list[Budget]:
        """Pay for jobs before they are queued; a negative number is a refund for those that were not.

        Raises LimitExceededError, QueueUnavailableError.
        """
        if caller.key is None or caller.key.limits.tokens_per_minute is None or tokens == 0:
            return []
        return await self._limiter.spend(caller.key.id, _limits(caller.key), {TOKENS: tokens})

    async def _look_up(self, id: str) -> KnownKey | None:
        """Also caches missing keys for a moment, so that timing does not reveal which keys exist."""
        now_s = asyncio.get_running_loop().time()
        remembered = self._remembered.get(id)
        if remembered is not None and now_s - remembered[0] < REMEMBER_S:
            return remembered[1]
        known = await self._keys.look_up(id)
        self._remembered[id] = now_s, known
        self._remembered.move_to_end(id)
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return known


def _limits(key: ApiKey) -> dict[str, int]:
    limits = {REQUESTS: key.limits.requests_per_minute, TOKENS: key.limits.tokens_per_minute}
    return {name: limit for name, limit in limits.items() if limit is not None}
