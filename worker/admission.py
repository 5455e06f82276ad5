"""Which jobs go to the engine at the next turn. Pure."""

from collections.abc import Iterable

from worker.held import HeldChoice, HeldJob


class Admission:
    """Owns the groups of jobs that the engine has not got yet, in order.

    A job goes in with all its rows at once, which then share its prefill. One for whose rows there
    are too few slots waits, and those behind it wait with it, so that it is not overtaken for ever.
    """

    def __init__(self) -> None:
        self._groups: list[list[HeldJob]] = []

    def __bool__(self) -> bool:
        return bool(self._groups)

    @property
    def jobs(self) -> list[HeldJob]:
        return [job for group in self._groups for job in group]

    def add(self, groups: Iterable[list[HeldJob]]) -> None:
        self._groups += groups

    def drop(self, jobs: Iterable[HeldJob]) -> None:
        """Forget these jobs, if they are there."""
        rows = {job.row for job in jobs}
        self._keep([[job for job in group if job.row not in rows] for group in self._groups])

    def take_over(self) -> list[HeldChoice]:
        """Take out the jobs that are to end before they became rows, and return these choices."""
        ending = [choice for job in self.jobs if job.over for choice in job.waiting]
        self._keep([[job for job in group if not job.over] for group in self._groups])
        return ending

    def take(self, free_slots: int, *, idle: bool) -> list[list[HeldJob]]:
        """Take out the groups, or what there are slots for.

        An ``idle`` engine gets the first job in any case: nothing will come free by waiting.
        """
        taken: list[list[HeldJob]] = []
        kept: list[list[HeldJob]] = []
        full = False
        for group in self._groups:
            now: list[HeldJob] = []
            for job in group:
                full = full or (len(job.waiting) > free_slots and not idle)
                if full:
                    break
                idle = False
                free_slots -= len(job.waiting)
                now.append(job)
            taken.append(now)
            kept.append(group[len(now) :])
        self._keep(kept)
        return [group for group in taken if group]

    def _keep(self, groups: list[list[HeldJob]]) -> None:
        self._groups = [group for group in groups if group]
