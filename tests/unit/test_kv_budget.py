"""Reservations, what running out of memory teaches, and that it is forgotten slowly."""

from worker.engines.scheduling.kv_budget import KVBudget


def test_reservations_add_up_and_are_given_back() -> None:
    budget = KVBudget(100)
    assert budget.reserve("a", 60)
    assert not budget.reserve("b", 41)
    assert budget.of("b") == 0
    assert budget.reserve("b", 40)
    assert budget.free_tokens == 0
    assert not budget.reserve("a", 61)
    assert budget.reserve("a", 50)
    budget.release("b")
    budget.release("unknown")
    assert budget.free_tokens == 50


def test_what_is_owed_to_others_is_not_free() -> None:
    budget = KVBudget(100)
    assert budget.reserve("a", 50)
    assert budget.fits("b", 20, owed_tokens=30)
    assert not budget.fits("b", 21, owed_tokens=30)


def test_out_of_memory_lowers_the_limit_to_what_worked() -> None:
    budget = KVBudget(6400)
    budget.step_failed(4000)
    assert budget.limit_tokens == 4000
    budget.step_failed(5000)
    assert budget.limit_tokens == 4000
    budget.step_failed(0)
    assert budget.limit_tokens == 100


def test_a_row_with_nothing_beside_it_may_try_all_there_ever_was() -> None:
    budget = KVBudget(6400)
    budget.step_failed(1000)
    assert budget.reserve("a", 6400)
    assert not budget.reserve("b", 1)
    assert not KVBudget(6400).reserve("a", 6401)
    assert not KVBudget(6400).fits("a", 6400, owed_tokens=1)


def test_the_limit_grows_back_with_quiet_steps_and_no_further() -> None:
    budget = KVBudget(6400)
    budget.step_failed(6250)
    for _ in range(63):
        budget.step_worked()
    assert budget.limit_tokens == 6250
    budget.step_worked()
    assert budget.limit_tokens == 6350
    for _ in range(63):
        budget.step_worked()
    budget.step_failed(6300)
    budget.step_worked()
    assert budget.limit_tokens == 6300
    for _ in range(200):
        budget.step_worked()
    assert budget.limit_tokens == 6400
