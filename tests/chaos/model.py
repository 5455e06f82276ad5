"""The queue as a plain Python model: what the scripts are to do, said a second time without Redis."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from millpond.messages import JobStatus
from millpond.queue.claims import Commit, Lease
from millpond.queue.job_queue import QueueOptions

PRIORITIES = ("interactive", "normal", "batch")
TURNS = "iiiniiiiniiiinib"
RUNNING, QUEUED = JobStatus.RUNNING, JobStatus.QUEUED
UNITS_A_TOKEN = 1000


TOKEN_BYTES = 4


@dataclass
class ModelJob:
    id: str
    priority: str
    tenant: str
    tokens: int
    order: int
    deadline_ms: int | None
    stream: bool
    status: JobStatus = QUEUED
    attempts: int = 0
    fence: int | None = None
    worker: str = ""
    lease_end_ms: int = 0
    cancel: bool = False
    due_ms: int | None = None
    deaths: int = 0
    charge: int = 0
    said: bool = False  # its text, of one character, is in the stream
    kept_bytes: int = 0


@dataclass
class Shares:
    """Who shares one priority. Counters are in thousandths of a token."""

    active: dict[str, int] = field(default_factory=dict)
    idle: dict[str, int] = field(default_factory=dict)
    left_level: int = 0

    @property
    def level(self) -> int:
        return min(self.active.values(), default=self.left_level)

    def join(self, tenant: str) -> None:
        if tenant not in self.active:
            self.active[tenant] = max(self.level, self.idle.pop(tenant, 0))

    def leave(self, tenant: str) -> None:
        counter = self.active.pop(tenant)
        if not self.active:
            self.left_level = counter
        self.idle[tenant] = counter
        self.idle = {t: c for t, c in self.idle.items() if c > self.level}

    def charge(self, tenant: str, units: int) -> None:
        if tenant in self.active:
            self.active[tenant] += units
            return
        counter = self.idle.pop(tenant, self.level) + units
        if counter > self.level:
            self.idle[tenant] = counter


@dataclass
class Model:
    """Nothing is learnt of lengths here: results tell of no output.

    A lane maps ids to their order. ``suspects`` are groups and since when they wait; they hold
    tombstones, as the queue's list does.
    """

    options: QueueOptions
    weights: dict[str, float]
    now_ms: int = 1_000_000_000_000
    jobs: dict[str, ModelJob] = field(default_factory=dict)
    lanes: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    shares: dict[str, Shares] = field(default_factory=lambda: {p: Shares() for p in PRIORITIES})
    suspects: list[tuple[int, list[str]]] = field(default_factory=list)
    # Of each worker: the suspects that it runs, or until when it drains for some.
    trials: dict[str, list[str] | int] = field(default_factory=dict)
    deadlines: dict[str, int] = field(default_factory=dict)
    dead: list[str] = field(default_factory=list)
    fence: int = 0
    turn: int = 0
    # Of each worker: the nonce of its last claim, (id, fence) of what it gave, whether suspects.
    last_claims: dict[str, tuple[int, list[tuple[str, int]], bool]] = field(default_factory=dict)

    # -- clients

    def submit(
        self,
        id: str,
        priority: str,
        tenant: str,
        tokens: int,
        deadline_ms: int | None,
        stream: bool,
    ) -> str:
        """'accepted', 'known' or, for another tenant's id, 'conflict'."""
        if id in self.jobs:
            return "known" if self.jobs[id].tenant == tenant else "conflict"
        due = None if deadline_ms is None else self.now_ms + deadline_ms
        job = ModelJob(id, priority, tenant, tokens, self.now_ms * 1000, due, stream)
        self.jobs[id] = job
        self._enter(job)
        if due is not None:
            self.deadlines[id] = due
        return "accepted"

    def cancel(self, id: str) -> JobStatus | None:
        job = self.jobs.get(id)
        if job is None:
            return None
        if job.status is QUEUED:
            self._finish(job, JobStatus.CANCELLED)
        elif job.status is RUNNING:
            job.cancel = True
        return job.status

    # -- workers

    def claim(
        self, worker: str, nonce: int, count: int, budget: int, capacity: int, lease_ms: int
    ) -> tuple[list[tuple[str, int, int]], int, str]:
        """(id, fence, attempt) of each job, jobs left, 'alone' if they are suspects, or 'draining'."""
        last_nonce, last, were_alone = self.last_claims.get(worker, (None, [], False))
        if nonce == last_nonce:
            held = [self.jobs[id] for id, fence in last if self.holds(id, fence)]
            for job in held:
                job.lease_end_ms = self.now_ms + lease_ms
            again = [(job.id, job.fence or 0, job.attempts) for job in held]
            return again, self.num_left, "alone" if were_alone else ""
        self.sweep()
        self.fence = max(self.fence, self.now_ms * 1000)
        claimed: list[tuple[str, int, int]] = []

        def take(id: str) -> str:
            nonlocal budget
            job = self.jobs.get(id)
            if job is None or job.status is not QUEUED or job.due_ms is not None:
                return "skipped"
            need = min(job.tokens, capacity)
            if need > budget:
                return "full"
            budget -= need
            self.fence += 1
            job.status, job.fence, job.worker = RUNNING, self.fence, worker
            job.attempts += 1
            job.lease_end_ms = self.now_ms + lease_ms
            job.charge = job.tokens
            self._charge(job, job.charge)
            claimed.append((id, self.fence, job.attempts))
            return "claimed"

        def take_suspects() -> bool:
            while self.suspects and not claimed:
                since, group = self.suspects.pop(0)
                rest = [id for id in group if len(claimed) >= count or take(id) == "full"]
                if rest:
                    self.suspects.insert(0, (since, rest))
            return bool(claimed)

        empty, waiting = budget >= capacity, bool(count and self.suspects)
        running, others_drain = self._trials_elsewhere(worker) if waiting else (0, False)
        alone = waiting and empty and not running and take_suspects()
        draining = waiting and not empty and not running and not others_drain
        draining = draining and self._suspects_overdue
        exhausted = False
        if not alone and not draining:
            exhausted = self._claim_lanes(take, claimed, count)
            alone = waiting and empty and not claimed and not running and take_suspects()
        if draining:
            self.trials[worker] = self.now_ms + lease_ms
        elif alone:
            self.trials[worker] = [id for id, _, _ in claimed]
        elif count:
            self.trials.pop(worker, None)
        if claimed:
            given = [(id, fence) for id, fence, _ in claimed]
            self.last_claims[worker] = (nonce, given, alone)
        left = 0 if draining or (exhausted and not alone) else self.num_left
        return claimed, left, "alone" if alone else "draining" if draining else ""

    def _claim_lanes(
        self, take: Callable[[str], str], claimed: list[tuple[str, int, int]], count: int
    ) -> bool:
        """Whether that has emptied them."""
        exhausted = False
        while len(claimed) < count:
            wanted = next(p for p in PRIORITIES if p[0] == TURNS[self.turn])
            lined = {p: [t for q, t in self.lanes if q == p] for p in PRIORITIES}
            priority = next((p for p in (wanted, *PRIORITIES) if lined[p]), None)
            if priority is None:
                exhausted = True
                break
            counters = self.shares[priority].active
            tenant = min(lined[priority], key=lambda t: (counters[t], t))
            lane = self.lanes[priority, tenant]
            id = min(lane, key=lambda i: (lane[i], i))
            if take(id) == "full":
                break
            del lane[id]
            if not lane:
                del self.lanes[priority, tenant]
            self.turn = (self.turn + 1) % len(TURNS)
        for priority, shares in self.shares.items():
            for tenant in sorted(shares.active, key=lambda t: shares.active[t]):
                if (priority, tenant) not in self.lanes:
                    shares.leave(tenant)
        return exhausted

    def _trials_elsewhere(self, worker: str) -> tuple[int, bool]:
        """How many run suspects, and whether one drains. No worker signs the registry here."""
        running, draining = 0, False
        for who, trial in list(self.trials.items()):
            if who == worker:
                continue
            if isinstance(trial, int):
                draining = draining or trial > self.now_ms
                continue
            jobs = [self.jobs[id] for id in trial if id in self.jobs]
            running += any(j.status is RUNNING and j.worker == who for j in jobs)
        return running, draining

    @property
    def _suspects_overdue(self) -> bool:
        patience_ms = round(self.options.suspect_wait_s * 1000)
        return bool(self.suspects) and self.suspects[0][0] + patience_ms <= self.now_ms

    @property
    def num_left(self) -> int:
        return sum(j.status is QUEUED and j.due_ms is None for j in self.jobs.values())

    def renew(self, held: Sequence[tuple[str, int]], lease_ms: int) -> list[Lease]:
        leases = []
        for id, fence in held:
            job = self.jobs.get(id)
            if job is None or not self.holds(id, fence):
                leases.append(Lease.LOST)
                continue
            job.lease_end_ms = self.now_ms + lease_ms
            late = job.deadline_ms is not None and job.deadline_ms <= self.now_ms
            leases.append(Lease.CANCELLED if job.cancel else Lease.EXPIRED if late else Lease.HELD)
        return leases

    def emit(self, id: str, fence: int, offset: int) -> list[Commit]:
        """Each claim keeps a token at that offset and writes the same first character, if the job keeps a
        stream."""
        job = self.jobs.get(id)
        if job is None or not self.holds(id, fence):
            return [Commit.LOST] * 2
        kept, said = job.kept_bytes == offset, job.stream and not job.said
        if kept:
            job.kept_bytes += TOKEN_BYTES
        elif job.kept_bytes < offset:
            job.kept_bytes = 0
        job.said = job.stream
        return [Commit.STORED if stored else Commit.KNOWN for stored in (kept, said)]

    def holds(self, id: str, fence: int) -> bool:
        job = self.jobs.get(id)
        return job is not None and job.status is RUNNING and job.fence == fence

    def complete(self, id: str, fence: int, status: JobStatus, served: int) -> Commit:
        if self.holds(id, fence):
            job = self.jobs[id]
            self._finish(job, status)
            self._charge(job, served - job.charge)
            return Commit.STORED
        job = self.jobs.get(id)
        return Commit.KNOWN if job is not None and job.fence == fence else Commit.LOST

    def fail(self, id: str, fence: int, attempt: int) -> Commit:
        if not self.holds(id, fence):
            job = self.jobs.get(id)
            return Commit.KNOWN if job is not None and job.fence == fence else Commit.LOST
        job = self.jobs[id]
        if job.attempts >= self.options.max_attempts:
            self._bury(job)
            return Commit.BURIED
        job.kept_bytes = 0
        if not self._take_back(job, refund=False):
            return Commit.STORED
        self._delay(job, 2 ** (attempt - 1))
        return Commit.RETRY

    def release(self, held: Sequence[tuple[str, int]]) -> int:
        released = 0
        for id, fence in held:
            if self.holds(id, fence) and self._take_back(self.jobs[id], refund=True):
                self._enter(self.jobs[id])
                released += 1
        return released

    def suspect(self, held: Sequence[tuple[str, int]]) -> int:
        ours = [self.jobs[id] for id, fence in held if self.holds(id, fence)]
        if len(ours) == 1:
            if ours[0].attempts >= self.options.max_attempts:
                self._bury(ours[0])
            elif self._take_back(ours[0], refund=False):
                self.suspects.append((self.now_ms, [ours[0].id]))
        else:
            self._halve(ours)
        return len(ours)

    # -- time

    def sweep(self) -> None:
        running = sorted(
            (j for j in self.jobs.values() if j.status is RUNNING),
            key=lambda j: (j.lease_end_ms, j.id),
        )
        dead_workers = [j.worker for j in running if j.lease_end_ms <= self.now_ms]
        for worker in dict.fromkeys(dead_workers):
            held = sorted((j for j in running if j.worker == worker), key=lambda j: j.fence or 0)
            suspects = []
            for job in held:
                job.fence = None
                if job.deadline_ms is not None and job.deadline_ms <= self.now_ms:
                    self._finish(job, JobStatus.EXPIRED)
                elif job.cancel:
                    self._finish(job, JobStatus.CANCELLED)
                else:
                    suspects.append(job)
            if len(suspects) == 1:
                self._blame_for_death(suspects[0])
            else:
                self._halve(suspects)
        due = [j for j in self.jobs.values() if j.due_ms is not None and j.status is QUEUED]
        for job in sorted(due, key=lambda j: (j.due_ms, j.id)):
            assert job.due_ms is not None
            if job.due_ms <= self.now_ms:
                job.due_ms = None
                if job.deaths:
                    self.suspects.append((self.now_ms, [job.id]))
                else:
                    self._enter(job)
        for deadline, id in sorted((deadline, id) for id, deadline in self.deadlines.items()):
            if deadline <= self.now_ms:
                if self.jobs[id].status is QUEUED:
                    self._finish(self.jobs[id], JobStatus.EXPIRED)
                else:
                    del self.deadlines[id]

    def _blame_for_death(self, job: ModelJob) -> None:
        job.deaths += 1
        if job.deaths >= self.options.max_deaths:
            self._bury(job)
        elif self._take_back(job, refund=False):
            job.attempts -= 1
            self._delay(job, 4 ** (job.deaths - 1))

    def _delay(self, job: ModelJob, times: int) -> None:
        delay_s = min(self.options.retry_delay_s * times, self.options.retry_delay_max_s)
        job.due_ms = self.now_ms + round(delay_s * 1000)

    def _halve(self, held: list[ModelJob]) -> None:
        middle = len(held) // 2
        halves = [held[:middle], held[middle:]]
        left = [[j.id for j in half if self._take_back(j, refund=True)] for half in halves]
        self.suspects += [(self.now_ms, ids) for ids in left if ids]

    def _take_back(self, job: ModelJob, *, refund: bool) -> bool:
        if job.cancel:
            self._finish(job, JobStatus.CANCELLED)
            return False
        if job.deadline_ms is not None:
            self.deadlines[job.id] = job.deadline_ms
        job.status, job.fence = QUEUED, None
        job.said = job.said and job.kept_bytes > 0
        if refund:
            job.attempts -= 1
            self._charge(job, -job.charge)
        return True

    def _bury(self, job: ModelJob) -> None:
        self._finish(job, JobStatus.FAILED)
        self.dead.append(job.id)

    def _finish(self, job: ModelJob, status: JobStatus) -> None:
        job.kept_bytes = 0
        if job.status is QUEUED:
            self._withdraw(job)
        job.status = status
        job.due_ms = None
        self.deadlines.pop(job.id, None)

    # -- lanes

    def _enter(self, job: ModelJob) -> None:
        self.lanes.setdefault((job.priority, job.tenant), {})[job.id] = job.order
        self.shares[job.priority].join(job.tenant)

    def _withdraw(self, job: ModelJob) -> None:
        whose = job.priority, job.tenant
        lane = self.lanes.get(whose, {})
        if lane.pop(job.id, None) is not None and not lane:
            del self.lanes[whose]
            self.shares[job.priority].leave(job.tenant)

    def _charge(self, job: ModelJob, tokens: int) -> None:
        units = math.floor(tokens * UNITS_A_TOKEN / self.weights.get(job.tenant, 1) + 0.5)
        self.shares[job.priority].charge(job.tenant, units)
