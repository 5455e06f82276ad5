"""Who runs, who waits and who is preempted, without a model: each step gives each row a token."""

import random
from collections.abc import Iterable

import pytest

from millpond.messages import FinishReason
from millpond.models.tokenization import ByteTokenizer
from worker.engines.base import Finished, GenerationRequest, RejectionCode, Sampling
from worker.engines.scheduling.kv_budget import GROWTH_TOKENS
from worker.engines.scheduling.row import Row
from worker.engines.scheduling.scheduler import Scheduler

TOKENIZER = ByteTokenizer()


def make(slots: int = 8, kv_tokens: int = 400, max_batched_tokens: int = 2048) -> Scheduler:
    return Scheduler(
        TOKENIZER,
        slots=slots,
        kv_tokens=kv_tokens,
        context_tokens=100_000,
        max_batched_tokens=max_batched_tokens,
    )


def request(
    row_id: str, prompt: int, max_tokens: int, predicted: int | None = None
) -> GenerationRequest:
    sampling = Sampling(max_tokens=max_tokens, seed=0, ignore_eos=True)
    return GenerationRequest(row_id, [65] * prompt, sampling, predicted)


class Machine:
    """Steps a scheduler as an engine does, and counts what it read again."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.finished: dict[str, Finished] = {}
        self.preempted: list[str] = []
        self.order: list[str] = []
        self.prefilled_tokens = 0

    def step(self) -> None:
        scheduler = self.scheduler
        ended = scheduler.take_ended()
        scheduler.retire()
        if scheduler.begin_prefill():
            assert scheduler.prefill is not None
            chunk = scheduler.next_chunk()
            touched = [row for rows in scheduler.prefill.ended(chunk).values() for row in rows]
            scheduler.start(touched)
            self.prefilled_tokens += chunk.num_tokens
        else:
            self.preempted += [s.id for s in scheduler.make_room(lambda row: None)]
            touched = list(scheduler.running)
            self._check()
        for row in touched:
            row.append(len(row.token_ids) % 50)
        scheduler.retire()
        self._collect((*ended, *touched))

    def drain(self) -> None:
        for _ in range(200_000):
            if not self.scheduler.num_rows:
                return
            self.step()
        raise AssertionError("the scheduler does not end its rows")

    def _check(self) -> None:
        budget = self.scheduler._budget
        used = sum(s.num_tokens for s in self.scheduler.running)
        assert used <= sum(budget._reserved.values()) <= budget.kv_tokens
        for row in self.scheduler.running:
            assert row.num_tokens <= budget.of(row.id) <= row.most_tokens

    def _collect(self, touched: Iterable[Row]) -> None:
        for event in self.scheduler.collect(touched):
            if isinstance(event, Finished):
                self.finished[event.id] = event
                self.order.append(event.id)


def test_a_prediction_decides_what_is_reserved() -> None:
    scheduler = make(kv_tokens=400)
    assert scheduler.admit([request("a", 10, 300, predicted=40)]) == []
    assert scheduler.capacity().free_tokens == 350
    assert scheduler.admit([request("b", 10, 30, predicted=9_999)]) == []
    assert scheduler.capacity().free_tokens == 310
    assert scheduler.admit([request("c", 10, 30, predicted=0)]) == []
    assert scheduler.capacity().free_tokens == 299


def test_a_long_job_and_sixty_short_ones_share_the_cache() -> None:
    scheduler = make(slots=64, kv_tokens=45_000)
    machine = Machine(scheduler)
    long = request("long", 512, 40_000, predicted=2_000)
    short = [request(f"s{i}", 100, 600, predicted=500) for i in range(60)]
    assert scheduler.admit([long]) == []
    assert scheduler.admit(short) == []
    machine.drain()
    assert len(machine.finished["long"].token_ids) == 40_000
    assert all(len(machine.finished[f"s{i}"].token_ids) == 600 for i in range(60))
    assert machine.order[-1] == "long"
    assert scheduler.capacity().free_tokens == 45_000


def test_a_row_grows_by_pages() -> None:
    scheduler = make(kv_tokens=400)
    machine = Machine(scheduler)
    scheduler.admit([request("a", 10, 300, predicted=20)])
    for _ in range(21):
        machine.step()
    assert scheduler.capacity().free_tokens == 370
    machine.step()
    assert scheduler.capacity().free_tokens == 370 - GROWTH_TOKENS


def test_the_youngest_is_preempted_and_the_oldest_never() -> None:
    scheduler = make(kv_tokens=400)
    machine = Machine(scheduler)
    scheduler.admit([request(i, 50, 340, predicted=50) for i in "abcd"])
    machine.drain()
    assert machine.preempted[:3] == ["d", "c", "b"]
    assert "a" not in machine.preempted
    assert machine.order == ["a", "b", "c", "d"]
    assert all(len(f.token_ids) == 340 for f in machine.finished.values())
    assert machine.finished["d"].token_ids == machine.finished["a"].token_ids


def test_what_a_preempted_row_needs_is_kept_from_new_ones() -> None:
    scheduler = make(kv_tokens=400)
    machine = Machine(scheduler)
    scheduler.admit([request("a", 50, 300, predicted=50), request("b", 50, 300, predicted=200)])
    while not machine.preempted:
        machine.step()
    assert scheduler.capacity().free_tokens == 0
    [rejection] = scheduler.admit([request("new", 1, 1)])
    assert rejection.code is RejectionCode.NO_CAPACITY
    machine.drain()
    assert machine.order == ["a", "b"]


def test_cancelled_while_preempted() -> None:
    scheduler = make(kv_tokens=400)
    machine = Machine(scheduler)
    scheduler.admit([request("a", 50, 300, predicted=50), request("b", 50, 300, predicted=200)])
    while not machine.preempted:
        machine.step()
    scheduler.cancel(["b"])
    machine.step()
    assert machine.finished["b"].reason is FinishReason.CANCELLED
    assert 0 < len(machine.finished["b"].token_ids) < 300
    machine.drain()
    assert scheduler.capacity().free_tokens == 400


def test_an_engine_that_runs_nothing_takes_any_row_that_ever_fitted() -> None:
    scheduler = make(kv_tokens=6_400)
    scheduler.step_failed(200)
    assert scheduler.capacity().free_tokens == 200
    assert scheduler.admit([request("a", 1_000, 5_400)]) == []
    [rejection] = scheduler.admit([request("b", 1, 1)])
    assert rejection.code is RejectionCode.NO_CAPACITY
    machine = Machine(scheduler)
    machine.drain()
    assert len(machine.finished["a"].token_ids) == 5_400


def test_being_preempted_costs_a_fixed_share_of_the_work() -> None:
    """However wrong the predictions: a row that outgrew its own gets half its output more."""
    scheduler = make(slots=16, kv_tokens=6_000)
    machine = Machine(scheduler)
    scheduler.admit([request(f"r{i}", 10, 5_000, predicted=1) for i in range(16)])
    machine.drain()
    generated = sum(len(f.token_ids) for f in machine.finished.values())
    assert machine.preempted
    assert machine.prefilled_tokens < 2 * generated


@pytest.mark.parametrize("seed", range(30))
def test_every_row_ends_whatever_is_predicted(seed: int) -> None:
    rng = random.Random(seed)
    scheduler = make(rng.randint(1, 8), rng.randint(150, 900), rng.choice([3, 40, 2048]))
    machine = Machine(scheduler)
    waiting = [
        request(
            f"r{i}",
            rng.randint(1, 60),
            rng.randint(1, 90),
            rng.choice([None, 1, rng.randint(1, 120)]),
        )
        for i in range(30)
    ]
    lengths = {r.id: r.sampling.max_tokens for r in waiting}
    cancelled: set[str] = set()
    while waiting or scheduler.num_rows:
        group = waiting[: rng.randint(0, 4)]
        refused = {r.id for r in scheduler.admit(group)}
        waiting = [r for r in group if r.id in refused] + waiting[len(group) :]
        if rng.random() < 0.03:
            live = rng.choice(sorted(lengths))
            scheduler.cancel([live])
            cancelled.add(live)
        if rng.random() < 0.05 and len(scheduler.running) > 1:
            scheduler.preempt(scheduler.youngest)
            scheduler.step_failed(scheduler.placed_tokens)
        machine.step()
        scheduler.step_worked()
    assert set(machine.finished) == set(lengths)
    for row_id, end in machine.finished.items():
        if end.reason is FinishReason.CANCELLED:
            assert row_id in cancelled
        else:
            assert len(end.token_ids) == lengths[row_id]
    assert not scheduler._budget._reserved


# -- prefill in chunks


def kinds(scheduler: Scheduler, steps: int) -> tuple[str, Machine]:
    """What each of so many steps is: a digit for the tens of tokens that it prefills, or d."""
    machine = Machine(scheduler)
    seen = ""
    for _ in range(steps):
        before = machine.prefilled_tokens
        machine.step()
        read = machine.prefilled_tokens - before
        seen += str(read // 10) if read else "d"
    return seen, machine


def test_the_chunks_of_a_long_prompt_alternate_with_decode_steps() -> None:
    scheduler = make(max_batched_tokens=40)
    machine = Machine(scheduler)
    scheduler.admit([request("running", 10, 100)])
    machine.step()
    scheduler.admit([request("long", 150, 5)])
    seen, _ = kinds(scheduler, 10)
    assert seen == "3d4d4d4ddd"  # ten were prefilled before, since the last decode step
    assert len(scheduler.running) == 2


def test_with_nothing_running_a_prompt_is_read_without_a_pause() -> None:
    scheduler = make(max_batched_tokens=40)
    scheduler.admit([request("long", 150, 5)])
    seen, _ = kinds(scheduler, 5)
    assert seen == "4443d"


def test_small_groups_share_what_may_be_prefilled_between_two_decode_steps() -> None:
    scheduler = make(kv_tokens=2000, max_batched_tokens=60)
    machine = Machine(scheduler)
    scheduler.admit([request("running", 10, 100)])
    machine.step()
    machine.step()
    for i in range(5):
        scheduler.admit([request(f"r{i}", 20, 90)])
    seen, _ = kinds(scheduler, 8)
    assert seen == "222d22dd"


def test_a_row_runs_as_soon_as_its_own_prompt_is_read() -> None:
    scheduler = make(max_batched_tokens=50)
    scheduler.admit([request("a", 30, 9), request("b", 60, 9)])
    machine = Machine(scheduler)
    machine.step()
    assert [row.id for row in scheduler.running] == ["a"]
    machine.drain()
    assert all(end.stats.group_rows == 2 for end in machine.finished.values())


def test_rows_of_one_prompt_are_read_once() -> None:
    scheduler = make()
    machine = Machine(scheduler)
    scheduler.admit([request(f"{i}", 50, 5) for i in range(4)])
    machine.step()
    assert machine.prefilled_tokens == 50
    assert len(scheduler.running) == 4


def test_when_the_row_that_is_read_for_others_ends_the_next_is_read() -> None:
    scheduler = make(max_batched_tokens=40)
    machine = Machine(scheduler)
    scheduler.admit([request(f"{i}", 70, 5) for i in range(3)])
    machine.step()
    scheduler.cancel(["0"])
    machine.drain()
    assert machine.finished["0"].reason is FinishReason.CANCELLED
    assert machine.finished["0"].token_ids == ()
    assert machine.prefilled_tokens == 40 + 70
    assert all(len(machine.finished[i].token_ids) == 5 for i in "12")


def test_a_growing_row_takes_the_room_of_a_younger_one_that_is_read_or_waits() -> None:
    """The oldest row is preempted for nobody, not even for those that hold room and do not run yet."""
    scheduler = make(kv_tokens=600, max_batched_tokens=2)
    machine = Machine(scheduler)
    scheduler.admit([request("old", 50, 340, predicted=1)])
    while len(scheduler.running) == 0:
        machine.step()
    scheduler.admit([request("reading", 400, 20, predicted=1)])
    scheduler.admit([request("waiting", 100, 20, predicted=1)])
    for _ in range(400):
        machine.step()
    assert machine.preempted[:2] == ["waiting", "reading"]
    machine.drain()
    assert "old" not in machine.preempted
    assert all(end.error is None for end in machine.finished.values())
    assert scheduler.capacity().free_tokens == 600


def test_a_prefill_that_is_given_up_begins_again() -> None:
    scheduler = make(max_batched_tokens=40)
    machine = Machine(scheduler)
    scheduler.admit([request("a", 30, 5), request("b", 60, 5)])
    machine.step()
    assert scheduler.begin_prefill() is False  # forty were read: a decode step is due
    assert scheduler.begin_prefill() is True
    group = scheduler.give_up_prefill()
    assert [(row.id, row.read_tokens) for row in group] == [("b", 0)]
    scheduler.split(group)
    machine.drain()
    assert len(machine.finished["b"].token_ids) == 5
