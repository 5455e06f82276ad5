"""When a window closes: by count or by time. Pure: no clock, no Redis.

An idle worker may hold a window open so that jobs which arrive together are generated together. A
busy worker never waits: a free slot is filled at the next step boundary, whatever the policy.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WindowPolicy:
    """The window closes at ``close_jobs`` waiting jobs, or ``max_wait_s`` after it saw the first.

    ``max_wait_s`` None: by count alone. At most ``max_jobs`` are taken.
    """

    close_jobs: int
    max_jobs: int
    max_wait_s: float | None

    @classmethod
    def at_once(cls, max_jobs: int) -> "WindowPolicy":
        """Take what is there; what comes later joins the batch at the next step."""
        return cls(close_jobs=1, max_jobs=max_jobs, max_wait_s=0.0)

    @classmethod
    def fixed(cls, jobs: int) -> "WindowPolicy":
        """A full batch or nothing: the last few of a trickle wait for ever. For offline work."""
        return cls(close_jobs=jobs, max_jobs=jobs, max_wait_s=None)

    @classmethod
    def sliding(cls, max_jobs: int, wait_s: float) -> "WindowPolicy":
        """Collect for a fixed time, whatever comes, unless the batch is full before."""
        return cls(close_jobs=max_jobs, max_jobs=max_jobs, max_wait_s=wait_s)

    @classmethod
    def hybrid(cls, min_jobs: int, max_jobs: int, max_wait_s: float) -> "WindowPolicy":
        """Go as soon as a small batch is there; a lone job waits ``max_wait_s`` for company."""
        return cls(close_jobs=min(min_jobs, max_jobs), max_jobs=max_jobs, max_wait_s=max_wait_s)


@dataclass(frozen=True, slots=True)
class WindowDecision:
    """Take ``take`` jobs now; with 0, look again after ``wait_s`` or when a job arrives (None)."""

    take: int
    wait_s: float | None = None


def decide(
    policy: WindowPolicy, *, waiting: int, waited_s: float, free_slots: int
) -> WindowDecision:
    """What an idle worker does with its open window.

    ``waiting`` jobs are queued, the first was seen ``waited_s`` ago, ``free_slots`` can be filled.
    """
    if waiting < 1 or free_slots < 1:
        return WindowDecision(take=0)
    take = min(waiting, policy.max_jobs, free_slots)
    if waiting >= min(policy.close_jobs, free_slots):
        return WindowDecision(take)
    if policy.max_wait_s is None:
        return WindowDecision(take=0)
    if waited_s >= policy.max_wait_s:
        return WindowDecision(take)
    return WindowDecision(take=0, wait_s=policy.max_wait_s - waited_s)
