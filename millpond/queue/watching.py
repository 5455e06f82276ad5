"""What a queue looks like from close by: its lanes and leases, and the rows of its workers as they run."""

from dataclasses import dataclass

from redis.asyncio import Redis

from millpond.messages import Priority
from millpond.messages.worker_rows import WorkerRows
from millpond.queue.keys import Keys
from millpond.queue.scripts import Scripts, raising_unavailable

# Of one look, which bounds its time.
MAX_TENANTS = 200
MAX_LEASES = 2_000


@dataclass(frozen=True, slots=True)
class HeldLeases:
    """A worker's leases: how many, and when the first of them ends unless it is renewed."""

    number: int
    first_ends_in_ms: int


@dataclass(frozen=True, slots=True)
class QueueOverview:
    """``lanes``: the jobs that wait, by tenant and priority. ``leases`` by worker.

    Of many tenants and leases those that are served, or end, first.
    """

    lanes: dict[str, dict[Priority, int]]
    leases: dict[str, HeldLeases]


class QueueWatch:
    """All methods raise QueueUnavailableError when Redis cannot serve."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._scripts = Scripts(redis, keys)
        self.channel = keys["rows"]

    async def overview(self) -> QueueOverview:
        found, held = await self._scripts.run("overview", MAX_TENANTS, MAX_LEASES)
        lanes: dict[str, dict[Priority, int]] = {}
        for priority, tenant, waiting in zip(found[::3], found[1::3], found[2::3], strict=True):
            lanes.setdefault(tenant.decode(), {})[Priority(priority.decode())] = waiting
        leases = {
            worker.decode(): HeldLeases(number, max(0, ends_in_ms))
            for worker, number, ends_in_ms in zip(held[::3], held[1::3], held[2::3], strict=True)
        }
        return QueueOverview(lanes, leases)

    async def ask_for_rows(self, for_s: float) -> None:
        """Have the workers publish their rows for so long, from their next heartbeats on."""
        await self._scripts.run("watch", round(for_s * 1000))

    async def publish(self, rows: WorkerRows) -> None:
        with raising_unavailable():
            await self._redis.publish(self.channel, rows.to_json())
