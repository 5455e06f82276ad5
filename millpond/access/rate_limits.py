"""Rate limits of API keys: token buckets in Redis, one script call for each payment."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from redis.asyncio import Redis

from millpond.errors import LimitExceededError
from millpond.queue.claims import new_nonce
from millpond.queue.keys import Keys
from millpond.queue.scripts import Arg, Scripts

WINDOW_S = 60
REQUESTS = "requests"
TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Budget:
    """One bucket after a payment: ``left`` of ``limit`` units, full again in ``reset_s``."""

    name: str
    limit: int
    left: int
    reset_s: int


class RateLimiter:
    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._scripts = Scripts(redis, keys)

    async def spend(
        self, key_id: str, limits: Mapping[str, int], amounts: Mapping[str, int]
    ) -> list[Budget]:
        """Pay ``amounts`` out of the buckets of ``limits`` (units a minute), all of them or none.

        A bucket without an amount is only read; a negative amount is a refund. Raises LimitExceededError,
        which names the bucket and carries all budgets, and QueueUnavailableError.
        """
        args: list[Arg] = [key_id, new_nonce()]
        for name, limit in limits.items():
            args += [name, limit, amounts.get(name, 0)]
        refused, answers = await self._scripts.run("spend", *args)
        budgets = [
            Budget(name, limit, left, math.ceil(full_ms / 1000))
            for (name, limit), (left, full_ms, _) in zip(limits.items(), answers, strict=True)
        ]
        if refused:
            budget, wait_ms = budgets[refused - 1], answers[refused - 1][2]
            raise LimitExceededError(budget.name, budget.limit, math.ceil(wait_ms / 1000), budgets)
        return budgets
