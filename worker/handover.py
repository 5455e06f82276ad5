"""What a worker that ends does with the jobs that it does not run: others are to have them at once."""

from millpond.queue.job_queue import JobQueue
from worker.intake import Intake
from worker.jobs.job_table import JobTable


async def give_back_waiting(queue: JobQueue, jobs: JobTable, intake: Intake) -> None:
    """Give back, unspent, what the engine has not got. Raises QueueUnavailableError."""
    await intake.break_off()
    await jobs.release_waiting()
    await _give_back_unheard(queue, intake)


async def give_back_all(queue: JobQueue, jobs: JobTable, intake: Intake | None) -> int:
    """Give everything back, unspent; how many jobs were still ours. Raises QueueUnavailableError.

    What was claimed unheard comes last, since that takes another claim.
    """
    if intake is not None:
        await intake.break_off()
    released = await jobs.release_all()
    if intake is not None:
        released += await _give_back_unheard(queue, intake)
    return released


async def _give_back_unheard(queue: JobQueue, intake: Intake) -> int:
    """What was claimed though nobody heard the answer."""
    unheard = [(job.id, job.fence) for job in await intake.unheard()]
    released = await queue.release(unheard)
    intake.forget_unheard()
    return released
