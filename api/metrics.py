"""Prometheus metrics: counters of the HTTP side, and the state of the queue and its workers in Redis."""

from collections.abc import Iterable
from typing import cast

from fastapi import FastAPI
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from api.processes import counters_are_shared
from millpond.queue.results import QueueState

# Long polls last up to a minute.
SECONDS_BUCKETS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)

# Fields of `WorkerState`: the labels of the info metric, and the others by metric.
_WORKER_FACTS = ("model", "engine", "backend", "dtype", "device")
_WORKER_GAUGES = {
    "jobs_per_s": "Jobs ended per second, recently.",
    "tokens_per_s": "Output tokens per second, recently.",
    "rows": "Rows in the batch now.",
    "in_flight": "Jobs claimed by the worker and not ended.",
    "slots": "Rows that the engine can decode at once.",
    "slot_share": "Mean share of the slots that were decoding.",
}
_WORKER_COUNTERS = {
    "jobs_total": "Jobs ended.",
    "tokens_total": "Output tokens.",
}


class Metrics:
    """One registry for each application, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        if not counters_are_shared():
            ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "millpond_http_requests_total",
            "Requests answered.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "millpond_http_request_seconds",
            "Time to the first byte of the answer.",
            ["route"],
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.refused = Counter(
            "millpond_http_refused_total",
            "Requests and connections refused before they reached a route.",
            ["code"],
            registry=self.registry,
        )
        self.jobs = Counter(
            "millpond_api_jobs_total",
            "Jobs that came in here: accepted, replayed or refused.",
            ["outcome"],
            registry=self.registry,
        )
        self.queue = QueueCollector()
        self.registry.register(self.queue)

    def exposition(self) -> bytes:
        """In Prometheus' text format; of several processes on one port, the sums of their counters."""
        if not counters_are_shared():
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        together.register(self.queue)
        return generate_latest(together)


def metrics_of(app: FastAPI) -> Metrics:
    return cast(Metrics, app.state.metrics)


class QueueCollector(Collector):
    """Exports the state last assigned to ``state``; None means that Redis did not answer."""

    def __init__(self) -> None:
        self.state: QueueState | None = None

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("millpond_redis_up", "Whether Redis answered this scrape.")
        up.add_metric([], 0 if self.state is None else 1)
        yield up
        if self.state is not None:
            yield from _queue_metrics(self.state)
            yield from _worker_metrics(self.state)


def _queue_metrics(state: QueueState) -> Iterable[Metric]:
    queued = GaugeMetricFamily(
        "millpond_queued_jobs", "Jobs queued, retries included.", labels=["priority"]
    )
    accepted = CounterMetricFamily(
        "millpond_accepted_jobs", "Jobs accepted since the queue was made.", labels=["priority"]
    )
    for priority, number in state.queued.items():
        queued.add_metric([priority], number)
        accepted.add_metric([priority], state.accepted[priority])
    done = CounterMetricFamily(
        "millpond_done_jobs", "Jobs ended since the queue was made.", labels=["status"]
    )
    for status, number in state.done.items():
        done.add_metric([status], number)
    unfinished = GaugeMetricFamily(
        "millpond_unfinished_jobs", "Queued and running jobs of each tenant.", labels=["tenant"]
    )
    for tenant, number in state.unfinished.items():
        unfinished.add_metric([tenant], number)
    yield from (queued, accepted, done, unfinished)
    yield GaugeMetricFamily("millpond_running_jobs", "Jobs leased now.", value=state.running)
    yield CounterMetricFamily(
        "millpond_missing_jobs",
        "Jobs whose records were gone: deleted by hand, or evicted.",
        value=state.missing,
    )
    yield GaugeMetricFamily("millpond_delayed_jobs", "Retries waiting.", value=state.delayed)
    yield GaugeMetricFamily("millpond_dead_jobs", "Jobs in the dead-letter list.", value=state.dead)


def _worker_metrics(state: QueueState) -> Iterable[Metric]:
    alive = [worker for worker in state.workers if worker.alive]
    yield GaugeMetricFamily("millpond_workers", "Workers alive.", value=len(alive))
    info = InfoMetricFamily("millpond_worker", "What the worker is.", labels=["worker"])
    for worker in alive:
        facts = {name: getattr(worker.state, name) or "" for name in _WORKER_FACTS}
        info.add_metric([worker.id], facts)
    yield info
    labels = ["worker", "model"]
    for table, family in (
        (_WORKER_GAUGES, GaugeMetricFamily),
        (_WORKER_COUNTERS, CounterMetricFamily),
    ):
        for name, meaning in table.items():
            metric = family(f"millpond_worker_{name}", meaning, labels=labels)
            for worker in alive:
                if (value := getattr(worker.state, name)) is not None:
                    metric.add_metric([worker.id, worker.state.model], value)
            yield metric
