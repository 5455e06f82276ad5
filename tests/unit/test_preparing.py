"""What happens to a window in which one job cannot be prepared: that job ends, the rest becomes rows."""

import pytest

from millpond.claims import ClaimedJob
from millpond.messages import FinishReason, JobRequest, JobResult, JobStatus
from millpond.presets import PRESETS
from millpond.tokenization import ByteTokenizer
from tests.unit.test_intake import FULL, SLOTS, Backlog, ids
from worker.held import HeldJob
from worker.intake import Intake
from worker.window import WindowPolicy

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
    held: list[HeldJob] = []
    refused: list[tuple[ClaimedJob, JobResult]] = []
    intake = Intake(
        queue,  # type: ignore[arg-type]
        BrokenTokenizer(error),
        PRESETS["simulated"],
        worker_id="w",
        policy=WindowPolicy.hybrid(1, SLOTS, 0.1),
        group_padded_tokens=4096,
        full=FULL,
        hold=held.extend,
        refuse=lambda job, result: refused.append((job, result)),
    )
    intake._work.set()

    assert sorted(ids(await intake.refill(FULL))) == ["j0", "j1", "j2"]

    [(job, result)] = refused
    assert (job.id, result.id) == ("bad", "bad")
    assert (result.status, result.finish_reason) == (JobStatus.FAILED, FinishReason.ERROR)
    assert result.metadata == {"n": "1"}
    assert result.error is not None
    assert result.error.code == "preparation_failed"
    assert type(error).__name__ in result.error.message
    told = capsys.readouterr().out
    assert type(error).__name__ in told
    assert SECRET not in told


@pytest.mark.parametrize("told_to_end", [KeyboardInterrupt, SystemExit])
async def test_what_ends_the_process_is_no_fault_of_a_job(
    told_to_end: type[BaseException],
) -> None:
    intake = Intake(
        Backlog(0),  # type: ignore[arg-type]
        BrokenTokenizer(told_to_end()),
        PRESETS["simulated"],
        worker_id="w",
        policy=WindowPolicy.at_once(SLOTS),
        group_padded_tokens=4096,
        full=FULL,
        hold=lambda jobs: None,
        refuse=lambda job, result: None,
    )
    body = JobRequest(prompt="break", raw=True).to_json()
    with pytest.raises(told_to_end):
        intake._prepare([ClaimedJob("a", 1, 1, claimed_ms=0, queue_wait_ms=0, body=body)])
