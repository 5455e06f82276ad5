"""Which jobs go to the engine: whole, in order, and as many as have room."""

from typing import Any

import pytest

from millpond.messages import JobRequest
from millpond.models.prompts import PreparedPrompt
from millpond.queue.claims import ClaimedJob
from worker.engines.base import Capacity
from worker.jobs.admission import Admission, less
from worker.jobs.in_flight import InFlightJob, never_run
from worker.jobs.job_state import JobState, RowState

TOKENS = 9  # of a row: one of the prompt and eight to come


def job(name: str, n: int = 1, predicted: int | None = None, **fields: Any) -> InFlightJob:
    request = JobRequest(prompt="x", n=n, **fields)
    claimed = ClaimedJob(
        name, 1, 1, claimed_ms=0, queue_wait_ms=0, body=b"", predicted_tokens=predicted
    )
    made = InFlightJob(claimed, window_jobs=1, state=JobState.WAITING)
    made.prepared(request, PreparedPrompt([1], 8, truncated=False, n=n))
    return made


def taken(admission: Admission, slots: int, tokens: int = 1000, *, idle: bool = False) -> list[str]:
    return [job.id for job in admission.take(Capacity(slots, tokens), idle=idle)]


def waiting(*jobs: InFlightJob) -> Admission:
    admission = Admission()
    admission.add(jobs)
    return admission


def test_jobs_go_in_while_there_are_slots() -> None:
    admission = waiting(job("a"), job("b", 3), job("c", 2))
    assert taken(admission, 6) == ["a", "b", "c"]
    assert not admission.jobs


def test_a_job_without_slots_for_all_its_rows_waits_and_is_not_overtaken() -> None:
    admission = waiting(job("a"), job("b", 3), job("c"), job("d"))
    assert taken(admission, 3) == ["a"]
    assert [j.id for j in admission.jobs] == ["b", "c", "d"]
    assert taken(admission, 2) == []
    assert taken(admission, 4) == ["b", "c"]
    assert taken(admission, 1) == ["d"]


def test_a_job_without_tokens_for_all_its_rows_waits_and_is_not_overtaken() -> None:
    admission = waiting(job("a", 2), job("b"))
    assert taken(admission, 9, 2 * TOKENS - 1) == []
    assert taken(admission, 9, 2 * TOKENS) == ["a"]
    assert taken(admission, 9, TOKENS) == ["b"]


def test_rows_that_the_engine_has_need_no_room_again() -> None:
    partly = job("a", 4)
    for row in partly.rows[:3]:
        row.state = RowState.RUNNING
    assert taken(waiting(partly), 1, TOKENS) == ["a"]


@pytest.mark.parametrize("state", [s for s in JobState if s is not JobState.WAITING])
def test_a_job_of_another_state_has_left(state: JobState) -> None:
    gone = job("a", 2)
    admission = waiting(gone, job("b"))
    gone.state = state
    assert [j.id for j in admission.jobs] == ["b"]
    assert taken(admission, 1) == ["b"]


def test_a_job_is_done_when_all_its_rows_have_ended() -> None:
    two = job("a", 2)
    for row in two.rows:
        assert not two.done
        row.end(never_run(row))
    assert two.done
    assert two.waiting == []


def test_an_idle_engine_gets_the_first_job_whatever_it_says_it_has_room_for() -> None:
    admission = waiting(job("a", 3), job("b", 2))
    assert taken(admission, 1) == []
    assert taken(admission, 1, 1, idle=True) == ["a"]
    assert taken(admission, 1) == []
    assert taken(admission, 2) == ["b"]


def test_what_is_predicted_is_reserved_and_never_more_than_can_be() -> None:
    assert less(Capacity(5, 100), [job("a", 2, predicted=3)]) == Capacity(3, 100 - 2 * 4)
    assert less(Capacity(1, 10), [job("a", 2, predicted=30)]) == Capacity(-1, 10 - 2 * TOKENS)
