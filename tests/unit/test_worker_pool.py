"""Which workers a stack starts, and what each may take."""

import pytest

from millpond.local.stack_events import StackError
from millpond.local.worker_pool import WorkerPool
from millpond.settings import Settings

COMMON = Settings(engine="simulated", memory_share=0.8)


def test_workers_of_one_model_share_the_memory_and_the_queue() -> None:
    workers = WorkerPool(workers=4).settings(COMMON)
    assert list(workers) == ["worker", "worker-2", "worker-3", "worker-4"]
    assert {worker.queue for worker in workers.values()} == {"default"}
    assert {worker.memory_share for worker in workers.values()} == {0.2}
    assert {worker.visible_devices for worker in workers.values()} == {None}


def test_each_card_has_a_worker_for_each_model() -> None:
    pool = WorkerPool(models=["vibethinker-1.5b"], devices=["0", "2"])
    workers = pool.settings(COMMON)
    assert {
        name: (worker.model_name, worker.queue, worker.visible_devices)
        for name, worker in workers.items()
    } == {
        "worker": ("simulated", "default", "0"),
        "worker-2": ("simulated", "default", "2"),
        "worker-vibethinker-1.5b": ("vibethinker-1.5b", "vibethinker-1.5b", "0"),
        "worker-vibethinker-1.5b-2": ("vibethinker-1.5b", "vibethinker-1.5b", "2"),
    }
    assert {worker.memory_share for worker in workers.values()} == {0.4}, "two share a card"


def test_metrics_are_on_successive_ports() -> None:
    common = COMMON.model_copy(update={"metrics_port": 9000})
    workers = WorkerPool(models=["vibethinker-1.5b"], workers=2).settings(common)
    assert [worker.metrics_port for worker in workers.values()] == [9000, 9001, 9002, 9003]


def test_two_models_of_one_queue_are_refused() -> None:
    pool = WorkerPool(models=["vibethinker-1.5b", "vibethinker-1.5b"])
    with pytest.raises(StackError, match=r"vibethinker-1\.5b"):
        pool.settings(COMMON)
