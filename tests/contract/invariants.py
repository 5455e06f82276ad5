"""What must be true of a queue's keys between any two operations, checked by reading them all."""

import json
from collections import Counter
from typing import Any

from redis.asyncio import Redis

from millpond.messages import EventType, JobEvent, JobStatus, Priority
from millpond.messages.stored_results import unpack
from millpond.queue.job_queue import QueueOptions
from millpond.queue.keys import QUEUE_KEYS, QUEUES, Keys

KEEPS = {
    *("about", "counts", "dead", "workers", "wake", "weights", "lengths"),
    *("deliveries", "endpoint_ids", "webhook_secrets"),
}
LISTED_MAX = QueueOptions().listed_max
RECORDS = ("job:", "body:", "kept:", "result:", "events:")
PASSING = ("trials", "last_claim", "spent", "paid")
PREFIXES = (
    *(*RECORDS, "lane:", "active:", "idle:", "ended:", "stored:"),
    *("delivery:", "endpoint:", "endpoints:"),
)


class Snapshot:
    """Everything that a queue holds, by key, read at once."""

    def __init__(self, keys: Keys, raw: dict[str, Any], ttls: dict[str, int]) -> None:
        self.keys = keys
        self.raw = raw
        self.ttls = ttls

    @classmethod
    async def take(cls, redis: Redis, keys: Keys) -> "Snapshot":
        raw: dict[str, Any] = {}
        ttls: dict[str, int] = {}
        async for key in redis.scan_iter(count=1_000):
            name = key.decode()
            raw[name] = await _read(redis, name)
            ttls[name] = await redis.pttl(name)
        return cls(keys, {k: v for k, v in raw.items() if v is not None}, ttls)

    def get(self, name: str) -> Any:
        """What lies under one of the names of QUEUE_KEYS."""
        return self.raw.get(self.keys[name])

    def ids(self, prefix: str) -> set[str]:
        base = self.keys[prefix]
        return {key.removeprefix(base) for key in self.raw if key.startswith(base)}

    def lane(self, priority: Priority, tenant: str) -> dict[str, int]:
        """Ids in the lane and their places in the order of acceptance."""
        return self.raw.get(self.keys.lane(priority, tenant)) or {}

    def counters(self, kind: str, priority: Priority) -> dict[str, int]:
        """The counters of the ``active`` or the ``idle`` tenants of a priority."""
        return self.raw.get(self.keys[kind] + priority) or {}

    def ttl(self, key: str) -> int:
        """Milliseconds left; -1 for a key that stays."""
        return self.ttls[key]


async def _read(redis: Redis, key: str) -> Any:
    match await redis.type(key):
        case b"hash":
            return {k.decode(): v.decode() for k, v in (await redis.hgetall(key)).items()}
        case b"list":
            return [item.decode() for item in await redis.lrange(key, 0, -1)]
        case b"zset":
            return {k.decode(): int(s) for k, s in await redis.zrange(key, 0, -1, withscores=True)}
        case b"stream":
            return [fields[b"event"] for _, fields in await redis.xrange(key)]
        case b"string":
            return await redis.get(key)
    return None  # it expired between the scan and now


async def check_invariants(redis: Redis, keys: Keys) -> Snapshot:
    """Raises AssertionError on the first thing that is not as it should be."""
    shot = await Snapshot.take(redis, keys)
    _check_names(shot)
    records = {id: shot.raw[keys.job(id)] for id in shot.ids("job")}
    for id, record in records.items():
        status = JobStatus(record["status"])
        if status is JobStatus.QUEUED:
            _check_queued(shot, id, record)
        elif status is JobStatus.RUNNING:
            _check_running(shot, id, record)
        else:
            _check_ended(shot, id, record)
    _check_lanes(shot, records)
    _check_indexes(shot, records)
    _check_counts(shot, records)
    _check_deliveries(shot, records)
    return shot


def check_only_ttl_left(shot: Snapshot) -> None:
    """With all jobs ended, whatever stays for ever is one of a few small keys."""
    stays = {key for key in shot.raw if shot.ttl(key) < 0}
    idle = {shot.keys["idle"] + priority for priority in Priority}
    assert stays <= {shot.keys[name] for name in KEEPS} | idle | {QUEUES}


def _check_names(shot: Snapshot) -> None:
    fixed = {shot.keys[name] for name, end in QUEUE_KEYS.items() if end not in PREFIXES} | {QUEUES}
    passing = tuple(shot.keys[name] for name in PASSING)
    for key in shot.raw:
        if key.startswith(passing):
            assert shot.ttl(key) != -1, f"{key} stays for ever"  # it may have ended meanwhile
            continue
        assert key in fixed or any(key.startswith(shot.keys[p[:-1]]) for p in PREFIXES), key
    jobs = shot.ids("job")
    for prefix in ("body", "result", "events"):
        assert shot.ids(prefix) <= jobs, f"{prefix} keys without a job record"
    assert {id.partition("/")[0] for id in shot.ids("kept")} <= jobs, "tokens without a job record"


def _check_queued(shot: Snapshot, id: str, record: dict[str, str]) -> None:
    _check_unfinished(shot, id, record)
    lane = shot.lane(Priority(record["priority"]), record["tenant"])
    delayed = shot.get("delayed") or {}
    suspects = [id for group in shot.get("suspects") or [] for id in group.split()[1:]]
    places = [id in lane, id in delayed, id in suspects]
    assert sum(places) == 1, f"{id} is queued in {sum(places)} places"
    if id in lane:
        assert lane[id] == int(record["order"])
    assert ("due" in record) == (id in delayed)
    if id in delayed:
        assert delayed[id] == int(record["due"])
    assert not record.keys() & {
        "worker",
        "claimed",
        "fence",
        "finished",
        "cancel",
        "charge",
    }
    assert "kept" in record or not record.keys() & {"said", "thought"}, "what is said is covered"
    if "deadline" in record:
        assert shot.get("deadlines")[id] == int(record["deadline"])


def _check_running(shot: Snapshot, id: str, record: dict[str, str]) -> None:
    _check_unfinished(shot, id, record)
    assert id in shot.get("leases")
    assert record.keys() >= {"worker", "claimed", "fence", "charge"}
    bounded = int(record["tokens"]) if record["most"] else float("inf")
    assert 0 <= int(record["charge"]) <= bounded
    assert "due" not in record
    assert int(record["attempts"]) >= 1
    assert int(record["fence"]) <= int(shot.get("counts")["fence"])


def _check_unfinished(shot: Snapshot, id: str, record: dict[str, str]) -> None:
    keys = shot.keys
    assert keys.body(id) in shot.raw, f"{id} has lost its body"
    assert keys.result(id) not in shot.raw
    for key in (keys.job(id), keys.body(id), keys.events(id)):
        assert shot.ttls.get(key, -1) == -1, f"{key} would vanish before the job has ended"
    assert int(record["attempts"]) >= 0
    assert int(record.get("kept", 0)) == _kept_bytes(shot, id, record)


def _kept_bytes(shot: Snapshot, id: str, record: dict[str, str]) -> int:
    choices = range(int(record.get("n", 1)))
    return sum(len(shot.raw.get(shot.keys.kept(id, i), b"")) for i in choices)


def _check_ended(shot: Snapshot, id: str, record: dict[str, str]) -> None:
    keys = shot.keys
    result = unpack(shot.raw[keys.result(id)], int(record["finished"]))
    assert result.id == id
    assert result.status == record["status"]
    assert not _kept_bytes(shot, id, record), f"tokens of {id} stay for ever"
    for key in (keys.job(id), keys.result(id), keys.body(id), keys.events(id)):
        assert key not in shot.raw or shot.ttl(key) > 0, f"{key} stays for ever"
    listed = shot.raw.get(keys.ended(record["tenant"])) or {}
    assert listed.get(id, result.finished_ms) == result.finished_ms
    assert id in listed or len(listed) == LISTED_MAX, f"{id} has ended and is not listed"
    assert (keys.body(id) in shot.raw) <= (id in (shot.get("dead") or []))
    if keys.events(id) in shot.raw:
        last = JobEvent.model_validate_json(shot.raw[keys.events(id)][-1])
        assert last.type is EventType.FINISHED
        assert (last.status, last.finished_ms) == (result.status, result.finished_ms)
        assert last.result is None, "a result is stored once"


def _check_lanes(shot: Snapshot, records: dict[str, dict[str, str]]) -> None:
    lanes = {
        key.removeprefix(shot.keys["lane"]) for key in shot.raw if key.startswith(shot.keys["lane"])
    }
    for priority in Priority:
        active, idle = (shot.counters(kind, priority) for kind in ("active", "idle"))
        assert {f"{priority}:{tenant}" for tenant in active} == {
            lane for lane in lanes if lane.startswith(f"{priority}:")
        }, "a tenant is active exactly while it has a lane"
        assert not active.keys() & idle.keys()
        for tenant in active:
            for id in shot.lane(priority, tenant):
                assert records[id]["status"] == JobStatus.QUEUED, f"{id} is no longer queued"
                assert (records[id]["priority"], records[id]["tenant"]) == (priority, tenant)


def _check_indexes(shot: Snapshot, records: dict[str, dict[str, str]]) -> None:
    def having(*statuses: JobStatus) -> set[str]:
        return {id for id, record in records.items() if record["status"] in statuses}

    assert set(shot.get("leases") or {}) == having(JobStatus.RUNNING)
    assert set(shot.get("delayed") or {}) <= having(JobStatus.QUEUED)
    assert set(shot.get("deadlines") or {}) <= having(JobStatus.QUEUED, JobStatus.RUNNING)
    fences = [records[id]["fence"] for id in having(JobStatus.RUNNING)]
    assert len(fences) == len(set(fences)), "two running jobs share a fence"
    assert (shot.get("wake") or ["1"]) == ["1"]
    for state in (shot.get("workers") or {}).values():
        beat, _, text = state.partition(" ")
        assert int(beat) > 0
        assert isinstance(json.loads(text), dict)


def _check_deliveries(shot: Snapshot, records: dict[str, dict[str, str]]) -> None:
    """One that has come about is due at some time, and does not stay; the others wait for their job."""
    deliveries = {name: shot.raw[shot.keys["delivery"] + name] for name in shot.ids("delivery")}
    happened = {name for name, delivery in deliveries.items() if "tries" in delivery}
    assert set(shot.get("deliveries") or {}) == happened
    for name in happened:
        assert shot.ttl(shot.keys["delivery"] + name) > 0, f"{name} stays for ever"
    wait = {f"url/{id}" for id, record in records.items() if "webhook" in record}
    unfinished = {f"url/{id}" for id, r in records.items() if not JobStatus(r["status"]).terminal}
    assert deliveries.keys() - happened == wait & unfinished


def _check_counts(shot: Snapshot, records: dict[str, dict[str, str]]) -> None:
    counts = {name: int(value) for name, value in (shot.get("counts") or {}).items()}
    queued = Counter(r["priority"] for r in records.values() if r["status"] == JobStatus.QUEUED)
    status = Counter(r["status"] for r in records.values())
    for priority in Priority:
        assert counts.get(f"queued:{priority}", 0) == queued[priority], priority
    assert counts.get("running", 0) == status[JobStatus.RUNNING]
    unfinished = Counter(
        r["tenant"] for r in records.values() if not JobStatus(r["status"]).terminal
    )
    assert {t: int(n) for t, n in (shot.get("open") or {}).items()} == unfinished
    _check_stored(shot, records, exact=not counts.get("missing") and not _lost_bodies(shot))
    for ended in (s for s in JobStatus if s.terminal):
        # Records past their time to live are gone, the count is for ever.
        assert counts.get(f"done:{ended}", 0) >= status[ended]
    accepted = sum(counts.get(f"accepted:{p}", 0) for p in Priority)
    done = sum(counts.get(f"done:{s}", 0) for s in JobStatus if s.terminal)
    assert accepted == done + status[JobStatus.QUEUED] + status[JobStatus.RUNNING]


def _lost_bodies(shot: Snapshot) -> bool:
    """Whether a job has ended because somebody had deleted its request."""
    results = (unpack(shot.raw[shot.keys.result(id)], 0) for id in shot.ids("result"))
    return any(r.error is not None and r.error.code == "body_missing" for r in results)


def _check_stored(shot: Snapshot, records: dict[str, dict[str, str]], *, exact: bool) -> None:
    """Bodies are counted exactly; results until the end of the hour in which they expire.

    Not ``exact``: what was deleted by hand counts on, until its tenant has no unfinished job.
    """
    bodies, kept = Counter[str](), Counter[str]()
    for id, record in records.items():
        body = len(shot.raw.get(shot.keys.body(id)) or b"")
        if JobStatus(record["status"]).terminal:
            kept[record["tenant"]] += body + len(shot.raw.get(shot.keys.result(id)) or b"")
        else:
            bodies[record["tenant"]] += body + _kept_bytes(shot, id, record)
    for tenant in bodies.keys() | kept.keys() | shot.ids("stored"):
        fields = {k: int(v) for k, v in (shot.raw.get(shot.keys["stored"] + tenant) or {}).items()}
        counted = fields.pop("bodies", 0)
        assert counted == bodies[tenant] or (counted > bodies[tenant] and not exact), tenant
        assert sum(fields.values()) >= kept[tenant], tenant
