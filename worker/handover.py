"""How a stopping worker returns its jobs, so that others get them at once."""

from millpond.queue.job_queue import JobQueue
from worker.intake import Intake
from worker.jobs.job_table import JobTable


async def give_back_waiting(queue: JobQueue, jobs: JobTable, intake: Intake) -> None:
    """Release the jobs that the engine has not received. Raises QueueUnavailableError."""
    await intake.break_off()
    await jobs.release_waiting()
    await _give_back_unheard(queue, intake)


async def give_back_all(queue: JobQueue, jobs: JobTable, intake: Intake | None) -> int:
    """Release all jobs; returns how many were still ours. Raises QueueUnavailableError.

    Jobs of an unanswered claim come last, since finding them takes another claim.
    """
    if intake is not None:
        await intake.break_off()
    released = await jobs.release_all()
    if intake is not None:
        released += await _give_back_unheard(queue, intake)
    return released


async def _give_back_unheard(queue: JobQueue, intake: Intake) -> int:
    """Release the jobs of a claim whose answer was lost."""
    unheard = [(job.id, job.fence) for job in await intake.unheard()]
    released = await queue.release(unheard)
    intake.forget_unheard()
    return released
