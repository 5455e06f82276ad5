"""What happens to a window in which one job cannot be prepared: that job ends, the rest becomes rows."""

import pytest

from millpond.messages import FinishReason, JobRequest, JobResult, JobStatus
from millpond.models.presets import PRESETS
from millpond.models.tokenization import ByteTokenizer
from millpond.queue.claims import ClaimedJob
from tests.unit.test_intake import FULL, SLOTS, Backlog, Busy
from worker.jobs.preparation import Preparation

SECRET = "the prompt itself"


class RustPanicError(BaseException):
    """As PyO3 raises it: no Exception."""


class BrokenTokenizer(ByteTokenizer):
    """Raises for prompts that contain ``break``."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def encode(self, text: str) -> list[int]:
        if "break" in text:
            raise self._error
        return super().encode(text)


@pytest.mark.parametrize(
    "error", [RuntimeError(SECRET), RecursionError(SECRET), RustPanicError(SECRET)]
)
async def test_a_job_whose_preparation_breaks_ends_alone(
    error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = Backlog(3)
    body = JobRequest(prompt="break", raw=True, metadata={"n": "1"}).to_json()
    queue.jobs.insert(1, ClaimedJob("bad", 9, 2, claimed_ms=0, queue_wait_ms=0, body=body))
    busy = Busy(queue, BrokenTokenizer(error))

    assert sorted(await busy.refill(FULL)) == ["j0", "j1", "j2"]

    [ending] = busy.jobs.committer._endings
    job, result = ending.claimed, ending.result
    assert (job.id, result.id) == ("bad", "bad")
    assert (result.status, result.finish_reason) == (JobStatus.FAILED, FinishReason.ERROR)
    assert result.metadata == {"n": "1"}
    assert result.error is not None
    assert result.error.code == "preparation_failed"
    assert type(error).__name__ in result.error.message
    told = capsys.readouterr().out
    assert type(error).__name__ in told
    assert SECRET not in told


def test_the_worker_checks_constraints_again_and_fails_the_job_alone() -> None:
    preparation = Preparation(PRESETS["simulated"], ByteTokenizer(), SLOTS)
    bodies = [JobRequest(prompt="x", guided_regex=regex).to_json() for regex in ("(", "a")]
    bodies.append(JobRequest(prompt="x").to_json())
    jobs = [ClaimedJob("a", 1, 1, claimed_ms=0, queue_wait_ms=0, body=body) for body in bodies]
    refused, constrained, free = preparation.prepare_all(jobs)
    assert isinstance(refused, JobResult)
    assert refused.error is not None
    assert refused.error.code == "invalid_request"
    assert refused.error.message.startswith("guided_regex: cannot be compiled")
    assert not isinstance(constrained, JobResult)
    assert not isinstance(free, JobResult)
    assert (constrained[2] is None, free[2] is None) == (False, True)
    assert [preparation.may_be_slow([job]) for job in jobs] == [True, True, False]


@pytest.mark.parametrize("told_to_end", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_process_is_no_fault_of_a_job(
    told_to_end: type[BaseException],
) -> None:
    preparation = Preparation(PRESETS["simulated"], BrokenTokenizer(told_to_end()), SLOTS)
    body = JobRequest(prompt="break", raw=True).to_json()
    with pytest.raises(told_to_end):
        preparation.prepare(ClaimedJob("a", 1, 1, claimed_ms=0, queue_wait_ms=0, body=body))
