"""Row 9: random operations on a real server, each compared with a plain Python model of the queue.

The server's clock is the model's: the scripts' own `TIME` is replaced by a key that the test sets.
Times to live stay real, so leases are long ones, and no key ends while an example runs.
"""

import asyncio
import dataclasses
from collections.abc import Coroutine
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from redis.asyncio import Redis

from millpond.errors import IdempotencyConflictError
from millpond.local.server import RedisServer, ServerOptions, bundled_server, free_port
from millpond.messages import EventType, JobEvent, JobRequest, JobStatus, Priority, Usage
from millpond.queue import scripts
from millpond.queue.claims import ClaimedJob, KeptText, KeptTokens
from millpond.queue.connection import connect
from millpond.queue.job_queue import JobQueue, QueueOptions
from millpond.queue.submission import NewJob, Submission
from millpond.queue.tenants import Tenants
from tests.chaos.model import PRIORITIES, TOKEN_BYTES, Model
from tests.chaos.test_workers import size
from tests.contract.invariants import check_invariants
from tests.contract.jobs import failed, success

T = TypeVar("T")
CLOCK = "clock"
LEASE_MS = 60_000
OPTIONS = QueueOptions(
    lease_s=LEASE_MS / 1000, retry_delay_s=30.0, max_attempts=2, max_deaths=2, suspect_wait_s=20.0
)
IDS = st.sampled_from([f"job-{i}" for i in range(12)])
WORKERS = st.sampled_from(["ann", "bob", "cleo"])
PICK = st.integers(0, 1_000)
TOKEN = b"1234"
WEIGHTS = {"dora": 1.0, "emil": 2.0, "fred": 0.5}
# Id, priority, tenant, tokens, deadline in ms, whether streamed.
JOBS = st.tuples(
    IDS,
    st.sampled_from(PRIORITIES),
    st.sampled_from(sorted(WEIGHTS)),
    st.sampled_from([5, 10, 40]),
    st.sampled_from([None, None, 18_000, 90_000]),
    st.booleans(),
)


class QueueMachine(RuleBasedStateMachine):
    """``rows`` are all claims ever made: most of them are stale, and are used all the same."""

    run_on: ClassVar[asyncio.Runner]
    redis: ClassVar[Redis]
    steps: ClassVar[int] = 0

    @initialize()
    def empty(self) -> None:
        self.model = Model(OPTIONS, WEIGHTS)
        self.queue = JobQueue(self.redis, "model", OPTIONS)
        self.rows: list[tuple[str, ClaimedJob]] = []
        self.seen: dict[str, bytes] = {}
        self.wait(self.redis.flushall())
        tenants = Tenants(self.redis, self.queue.keys)
        for tenant, weight in WEIGHTS.items():
            self.wait(tenants.set_weight(tenant, weight))
        self.set_clock()

    def wait(self, call: Coroutine[Any, Any, T]) -> T:
        return self.run_on.run(call)

    def set_clock(self) -> None:
        seconds, ms = divmod(self.model.now_ms, 1000)
        self.wait(self.redis.hset(CLOCK, mapping={"s": seconds, "us": ms * 1000}))

    def row(self, pick: int) -> ClaimedJob:
        return self.rows[-1 - pick % len(self.rows)][1]

    def rows_of(self, worker: str) -> list[tuple[str, int]]:
        """One claim of each id at most, the newest: what a worker's table can hold."""
        newest = {job.id: job.fence for owner, job in self.rows if owner == worker}
        return list(newest.items())

    @rule(jobs=st.lists(JOBS, min_size=1, max_size=6))
    def submit(self, jobs: list[tuple[Any, ...]]) -> None:
        """Several: an example with one job here and one there has nothing to go wrong."""
        for job in jobs:
            self.submit_one(*job)

    def submit_one(
        self,
        id: str,
        priority: Any,
        tenant: str,
        tokens: int,
        deadline_ms: int | None,
        stream: bool,
    ) -> None:
        deadline_s = None if deadline_ms is None else deadline_ms / 1000
        request = JobRequest(prompt=id, priority=priority, deadline_s=deadline_s, stream=stream)
        [answer] = self.wait(self.queue.submit_many([NewJob(request, id, tenant, tokens)]))
        said = self.model.submit(id, priority, tenant, tokens, deadline_ms, stream)
        if isinstance(answer, Submission):
            created = said == "accepted"
            assert answer == Submission(id, self.model.jobs[id].status, created=created)
        else:
            assert isinstance(answer, IdempotencyConflictError)
            assert said != "accepted"

    def claim(self, worker: str, nonce: int, count: int, free: int) -> None:
        claim = self.wait(
            self.queue.claim(
                worker, count, budget_tokens=free, capacity_tokens=30, nonce=str(nonce)
            )
        )
        jobs, left, mode = self.model.claim(worker, nonce, count, free, 30, LEASE_MS)
        assert [(j.id, j.fence, j.attempt) for j in claim.jobs] == jobs
        for job in claim.jobs:
            known = self.model.jobs[job.id]
            tokens = TOKEN * (known.kept_bytes // TOKEN_BYTES)
            assert job.kept == ((KeptText(known.said, 0, tokens),) if tokens else ())
        assert claim.left == left
        assert (claim.alone, claim.draining) == (mode == "alone", mode == "draining")
        self.rows += [(worker, job) for job in claim.jobs]

    @rule(
        worker=WORKERS,
        nonce=st.integers(0, 2),
        count=st.integers(0, 8),
        free=st.sampled_from([10, 30, 30, 30]),
    )
    def claim_some(self, worker: str, nonce: int, count: int, free: int) -> None:
        """With three nonces to choose from, some are the last claim made again."""
        self.claim(worker, nonce, count, free)

    @rule(worker=WORKERS, nonce=st.integers(3, 1_000_000))
    def claim_all(self, worker: str, nonce: int) -> None:
        """Half of all claims take what they can, so that most jobs run at some time."""
        self.claim(worker, nonce, count=8, free=30)

    @rule(ms=st.sampled_from([1, 12_000, 30_000, LEASE_MS - 1, LEASE_MS, 3 * LEASE_MS]))
    def time_passes(self, ms: int) -> None:
        """Also the crash: whoever does not renew within a lease is dead."""
        self.model.now_ms += ms
        self.set_clock()

    @rule()
    def reap(self) -> None:
        self.wait(self.queue.reap())
        self.model.sweep()

    @rule(worker=WORKERS)
    def renew(self, worker: str) -> None:
        held = self.rows_of(worker)
        assert self.wait(self.queue.renew(held)) == self.model.renew(held, LEASE_MS)

    @rule(id=IDS)
    def cancel(self, id: str) -> None:
        assert self.wait(self.queue.cancel(id)) == self.model.cancel(id)

    @precondition(lambda self: self.rows)
    @rule(pick=PICK, again=st.booleans(), served=st.sampled_from([0, 3, 50]))
    def complete(self, pick: int, again: bool, served: int) -> None:
        job = self.row(pick)
        usage = Usage(prompt_tokens=served, completion_tokens=0)
        for _ in range(1 + again):
            result = success(job.id, text=f"fence {job.fence}", usage=usage)
            [commit] = self.wait(self.queue.complete([(job.fence, result)]))
            assert commit == self.model.complete(job.id, job.fence, result.status, served)

    @precondition(lambda self: self.rows)
    @rule(pick=PICK)
    def fail(self, pick: int) -> None:
        job = self.row(pick)
        commit = self.wait(self.queue.fail(job.fence, job.attempt, failed(job.id)))
        assert commit == self.model.fail(job.id, job.fence, job.attempt)

    @rule(worker=WORKERS)
    def release(self, worker: str) -> None:
        held = self.rows_of(worker)
        assert self.wait(self.queue.release(held)) == self.model.release(held)

    @rule(worker=WORKERS)
    def suspect(self, worker: str) -> None:
        held = self.rows_of(worker)
        pairs = [(fence, failed(id)) for id, fence in held]
        assert self.wait(self.queue.suspect(pairs)) == self.model.suspect(held)

    @precondition(lambda self: self.rows)
    @rule(pick=PICK, offset=st.sampled_from([0, TOKEN_BYTES, None, None]))
    def emit(self, pick: int, offset: int | None) -> None:
        """Mostly behind what is kept; else what was written before, or what has lost its beginning."""
        job = self.row(pick)
        known = self.model.jobs.get(job.id)
        if offset is None:
            offset = 0 if known is None else known.kept_bytes
        kept = KeptTokens(job.id, 0, offset, TOKEN)
        event = JobEvent(type=EventType.DELTA, id=job.id, attempt=job.attempt, text="x", offset=0)
        answers = self.wait(self.queue.emit([(job.fence, event)], [(job.fence, kept)]))
        assert answers == self.model.emit(job.id, job.fence, offset)

    @rule(id=IDS)
    def forget(self, id: str) -> None:
        """The time to live of a job that has ended is over; its id may come again."""
        job = self.model.jobs.get(id)
        # A tombstone among the suspects is gone long before any time to live.
        if job is None or not job.status.terminal or any(id in g for _, g in self.model.suspects):
            return
        keys = self.queue.keys
        self.wait(self.redis.delete(*(keys[k] + id for k in ("job", "body", "result", "events"))))
        del self.model.jobs[id]
        self.seen.pop(id, None)

    @invariant()
    def the_queue_is_as_the_model_says(self) -> None:
        if not hasattr(self, "model"):
            return
        type(self).steps += 1
        self.wait(self.redis.delete(CLOCK))
        shot = self.wait(check_invariants(self.redis, self.queue.keys))
        self.set_clock()
        model = self.model
        for name in PRIORITIES:
            priority, shares = Priority(name), model.shares[name]
            for tenant in WEIGHTS:
                assert shot.lane(priority, tenant) == model.lanes.get((name, tenant), {})
            assert shot.counters("active", priority) == shares.active
            assert shot.counters("idle", priority) == shares.idle
        suspects = [(int(g.split()[0]), g.split()[1:]) for g in shot.get("suspects") or []]
        assert suspects == model.suspects
        assert (shot.get("deadlines") or {}) == model.deadlines
        assert set(shot.get("dead") or {}) == set(model.dead)
        waiting = {j.id: j.due_ms for j in model.jobs.values() if j.due_ms is not None}
        assert (shot.get("delayed") or {}) == waiting
        running = [j for j in model.jobs.values() if j.status is JobStatus.RUNNING]
        assert (shot.get("leases") or {}) == {j.id: j.lease_end_ms for j in running}
        records = {id: shot.raw[self.queue.keys.job(id)] for id in shot.ids("job")}
        found = {id: (r["status"], int(r["attempts"])) for id, r in records.items()}
        assert found == {j.id: (j.status, j.attempts) for j in model.jobs.values()}
        for id in shot.ids("result"):
            stored = shot.raw[self.queue.keys.result(id)]
            assert self.seen.setdefault(id, stored) == stored, "a result has changed"


def test_the_queue_does_what_the_model_does(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = scripts.load_script

    def with_our_clock(name: str, package: str) -> scripts.Script:
        script = real(name, package)
        ours = f"redis.call('HMGET', '{CLOCK}', 's', 'us')".encode()
        source = script.source.replace(b"redis.call('TIME')", ours)
        sha = scripts.sha1(source, usedforsecurity=False).hexdigest()
        return dataclasses.replace(script, source=source, sha=sha)

    monkeypatch.setattr(scripts, "load_script", with_our_clock)
    server = RedisServer(ServerOptions(tmp_path / "redis", free_port()), bundled_server())
    with asyncio.Runner() as runner:
        runner.run(server.start())
        QueueMachine.run_on, QueueMachine.redis = runner, connect(server.url)
        try:
            stateful.run_state_machine_as_test(
                QueueMachine,
                settings=settings(
                    max_examples=size(250, 12),
                    stateful_step_count=50,
                    deadline=None,
                    derandomize=size(0, 1) == 1,
                    suppress_health_check=list(HealthCheck),
                ),
            )
            print(f"steps {QueueMachine.steps}")
        finally:
            runner.run(QueueMachine.redis.aclose())
            runner.run(server.stop())
