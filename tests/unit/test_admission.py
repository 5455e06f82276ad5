"""Which jobs go to the engine: whole, in order, and as many as have slots."""

from typing import Any

from millpond.claims import ClaimedJob
from millpond.messages import JobRequest, JobStatus
from millpond.prompts import PreparedPrompt
from worker.admission import Admission
from worker.held import HeldJob, never_run


def job(name: str, n: int = 1, **fields: Any) -> HeldJob:
    request = JobRequest(prompt="x", n=n, **fields)
    claimed = ClaimedJob(name, 1, 1, claimed_ms=0, queue_wait_ms=0, body=request.to_json())
    return HeldJob(claimed, request, PreparedPrompt([1], 8, truncated=False, n=n), window_jobs=1)


def ids(groups: list[list[HeldJob]]) -> list[list[str]]:
    return [[job.id for job in group] for group in groups]


def test_groups_go_in_as_they_are_while_there_are_slots() -> None:
    admission = Admission()
    admission.add([[job("a"), job("b", 3)], [job("c", 2)]])
    assert ids(admission.take(6, idle=False)) == [["a", "b"], ["c"]]
    assert not admission


def test_a_job_without_slots_for_all_its_rows_waits_and_is_not_overtaken() -> None:
    admission = Admission()
    admission.add([[job("a"), job("b", 3), job("c")], [job("d")]])
    assert ids(admission.take(3, idle=False)) == [["a"]]
    assert [j.id for j in admission.jobs] == ["b", "c", "d"]
    assert ids(admission.take(2, idle=False)) == []
    assert ids(admission.take(4, idle=False)) == [["b", "c"]]
    assert ids(admission.take(1, idle=False)) == [["d"]]


def test_rows_that_the_engine_has_need_no_slot_again() -> None:
    admission, partly = Admission(), job("a", 4)
    for choice in partly.choices[:3]:
        choice.admitted = True
    admission.add([[partly]])
    assert ids(admission.take(1, idle=False)) == [["a"]]


def test_what_is_to_end_is_taken_out_first() -> None:
    admission, ended, lost = Admission(), job("a", 2), job("b")
    ended.end_as, lost.lost = JobStatus.CANCELLED, True
    ended.choices[0].admitted = True
    admission.add([[ended], [lost, job("c")]])
    assert [choice.row for choice in admission.take_over()] == ["a/1/1", "b/1/0"]
    assert ids(admission.take(9, idle=False)) == [["c"]]


def test_jobs_can_be_dropped_by_name() -> None:
    admission, gone = Admission(), job("a", 2)
    admission.add([[gone, job("b")]])
    admission.drop([gone, job("never there")])
    assert ids(admission.take(9, idle=False)) == [["b"]]


def test_a_job_is_done_when_all_its_choices_have_ended() -> None:
    two = job("a", 2)
    for choice in two.choices:
        assert not two.done
        choice.finished = never_run(choice)
    assert two.done
    assert two.waiting == []


def test_an_idle_engine_gets_the_first_job_whatever_it_says_it_has_room_for() -> None:
    admission = Admission()
    admission.add([[job("a", 3), job("b", 2)]])
    assert ids(admission.take(1, idle=False)) == []
    assert ids(admission.take(1, idle=True)) == [["a"]]
    assert ids(admission.take(1, idle=False)) == []
    assert ids(admission.take(2, idle=False)) == [["b"]]
