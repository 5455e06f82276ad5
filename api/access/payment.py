"""Tokens are paid before jobs are queued, and refunded for jobs that were not newly queued."""

from collections.abc import Sequence

import structlog
from starlette.requests import Request

from api.access.gate import Caller
from api.access.rate_headers import remember_budgets
from api.services import Services
from millpond.errors import LimitExceededError, MillpondError, QueueUnavailableError
from millpond.queue.submission import NewJob, Submission

log = structlog.get_logger("millpond.api")


async def pay(request: Request, api: Services, caller: Caller, jobs: Sequence[NewJob]) -> None:
    """Raises LimitExceededError when the key has too few tokens left, QueueUnavailableError."""
    try:
        budgets = await api.gate.spend_tokens(caller, sum(job.tokens or 0 for job in jobs))
    except LimitExceededError as error:
        remember_budgets(request.scope, error.budgets)
        raise
    remember_budgets(request.scope, budgets)


async def give_back(
    request: Request,
    api: Services,
    caller: Caller,
    jobs: Sequence[NewJob],
    outcomes: Sequence[Submission | MillpondError],
) -> None:
    """Refund the jobs that were refused or already known. Skipped if Redis has just gone away."""
    unused = sum(
        job.tokens or 0
        for job, outcome in zip(jobs, outcomes, strict=True)
        if not (isinstance(outcome, Submission) and outcome.created)
    )
    try:
        remember_budgets(request.scope, await api.gate.spend_tokens(caller, -unused))
    except QueueUnavailableError as error:
        log.warning("tokens_not_given_back", tokens=unused, cause=str(error))
