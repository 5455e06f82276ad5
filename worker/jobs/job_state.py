"""The states of a job in flight, and of its rows."""

from enum import StrEnum


class JobState(StrEnum):
    """Where an in-flight job stands. Only the `JobTable` moves it, and never back, but for a job
    that the engine had no room for."""

    CLAIMED = "claimed"  # leased to this worker; its request is not read yet
    WAITING = "waiting"  # some of its rows are not with the engine
    RUNNING = "running"  # all of its rows are with the engine, or have ended
    CANCELLING = "cancelling"  # its client cancelled it: the engine is to end its rows
    EXPIRING = "expiring"  # as CANCELLING, because its deadline has passed
    LOST = "lost"  # as CANCELLING, but its lease is gone, so nothing more is written
    ENDED = "ended"  # its result is with the Committer; the lease is kept until it is stored


# The states of jobs that are to run no further.
STOPPED_STATES = frozenset({JobState.CANCELLING, JobState.EXPIRING, JobState.LOST})


class RowState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"  # with the engine, where it may wait too
    ENDED = "ended"
