"""The tenants of a queue: the weights by which they share the workers, and their unfinished jobs."""

from dataclasses import dataclass

from redis.asyncio import Redis

from millpond.errors import InvalidRequestError
from millpond.messages import TENANT_PATTERN
from millpond.queue.keys import Keys
from millpond.queue.scripts import raising_unavailable

DEFAULT_WEIGHT = 1.0
MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant of weight 2 is served twice the tokens of one of weight 1 while both have jobs waiting.

    ``unfinished_jobs`` counts the queued and running ones.
    """

    name: str
    weight: float
    unfinished_jobs: int


class Tenants:
    """All methods raise QueueUnavailableError when Redis cannot serve."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys

    async def set_weight(self, tenant: str, weight: float) -> None:
        """Takes effect with the next claim. Raises InvalidRequestError naming the field."""
        if not TENANT_PATTERN.fullmatch(tenant):
            raise InvalidRequestError("tenant", f"must match {TENANT_PATTERN.pattern}", limit=32)
        if not MIN_WEIGHT <= weight <= MAX_WEIGHT:
            raise InvalidRequestError("weight", f"from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}")
        with raising_unavailable():
            if weight == DEFAULT_WEIGHT:
                await self._redis.hdel(self._keys["weights"], tenant)
            else:
                await self._redis.hset(self._keys["weights"], tenant, f"{weight:g}")

    async def list(self) -> list[Tenant]:
        """The tenants that have unfinished jobs or a weight of their own, by name."""
        with raising_unavailable():
            async with self._redis.pipeline(transaction=False) as pipe:
                pipe.hgetall(self._keys["weights"])
                pipe.hgetall(self._keys["open"])
                found: list[dict[bytes, bytes]] = await pipe.execute()
        weights, unfinished = ({k.decode(): float(v) for k, v in one.items()} for one in found)
        return [
            Tenant(name, weights.get(name, DEFAULT_WEIGHT), int(unfinished.get(name, 0)))
            for name in sorted(weights.keys() | unfinished.keys())
        ]
