"""Prometheus metrics: counters of the HTTP side, and the state of the queues and their workers in Redis.

What only a worker can measure, such as the time to the first token, it exports itself: `worker/metrics.py`.
"""

from collections.abc import Iterable, Mapping
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

    def __init__(self, max_depth: int) -> None:
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
        self.queue = QueueCollector(max_depth)
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
    """Exports what was last assigned to ``states``, by queue; None means that Redis did not answer."""

    def __init__(self, max_depth: int) -> None:
        self._max_depth = max_depth
        self.states: Mapping[str, QueueState] | None = None

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("millpond_redis_up", "Whether Redis answered this scrape.")
        up.add_metric([], 0 if self.states is None else 1)
        yield up
        if self.states is not None:
            limit = GaugeMetricFamily(
                "millpond_queue_limit_jobs", "Jobs queued at the most.", labels=["queue"]
            )
            for queue in self.states:
                limit.add_metric([queue], self._max_depth)
            yield limit
            yield from _queue_metrics(self.states)
            yield from _worker_metrics(self.states)


def _queue_metrics(states: Mapping[str, QueueState]) -> Iterable[Metric]:
    def gauge(name: str, meaning: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(name, meaning, labels=["queue", *labels])

    def counter(name: str, meaning: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(name, meaning, labels=["queue", *labels])

    queued = gauge("millpond_queued_jobs", "Jobs queued, retries included.", "priority")
    waiting = gauge(
        "millpond_next_job_wait_seconds", "How long the job that is next has waited.", "priority"
    )
    accepted = counter(
        "millpond_accepted_jobs", "Jobs accepted since the queue was made.", "priority"
    )
    done = counter("millpond_done_jobs", "Jobs ended since the queue was made.", "status")
    unfinished = gauge(
        "millpond_unfinished_jobs", "Queued and running jobs of each tenant.", "tenant"
    )
    running = gauge("millpond_running_jobs", "Jobs leased now.")
    delayed = gauge("millpond_delayed_jobs", "Retries waiting.")
    dead = gauge("millpond_dead_jobs", "Jobs in the dead-letter list.")
    missing = counter(
        "millpond_missing_jobs", "Jobs whose records were gone: deleted by hand, or evicted."
    )
    lost = counter("millpond_leases_lost", "Leases that ended while their jobs ran.")
    retries = counter("millpond_retries", "Attempts that failed and are made again.")
    buried = counter("millpond_dead_letters", "Jobs that became dead letters.")
    owed = gauge("millpond_pending_webhooks", "Webhooks that are neither delivered nor dropped.")
    webhooks = counter("millpond_webhooks", "Webhooks that came to their end.", "outcome")
    for queue, state in states.items():
        for priority, number in state.queued.items():
            queued.add_metric([queue, priority], number)
            waiting.add_metric([queue, priority], state.waiting_ms[priority] / 1000)
            accepted.add_metric([queue, priority], state.accepted[priority])
        for status, number in state.done.items():
            done.add_metric([queue, status], number)
        for tenant, number in state.unfinished.items():
            unfinished.add_metric([queue, tenant], number)
        running.add_metric([queue], state.running)
        delayed.add_metric([queue], state.delayed)
        dead.add_metric([queue], state.dead)
        missing.add_metric([queue], state.missing)
        lost.add_metric([queue], state.leases_lost)
        retries.add_metric([queue], state.retries)
        buried.add_metric([queue], state.dead_letters)
        owed.add_metric([queue], state.webhooks_pending)
        webhooks.add_metric([queue, "delivered"], state.webhooks_delivered)
        webhooks.add_metric([queue, "dropped"], state.webhooks_dropped)
    yield from (queued, waiting, accepted, done, unfinished, running, delayed, dead)
    yield from (missing, lost, retries, buried, owed, webhooks)


def _worker_metrics(states: Mapping[str, QueueState]) -> Iterable[Metric]:
    workers = GaugeMetricFamily("millpond_workers", "Workers alive.", labels=["queue"])
    info = InfoMetricFamily("millpond_worker", "What the worker is.", labels=["queue", "worker"])
    alive = {
        queue: [worker for worker in state.workers if worker.alive]
        for queue, state in states.items()
    }
    for queue, own in alive.items():
        workers.add_metric([queue], len(own))
        for worker in own:
            facts = {name: getattr(worker.state, name) or "" for name in _WORKER_FACTS}
            info.add_metric([queue, worker.id], facts)
    yield from (workers, info)
    labels = ["queue", "worker", "model"]
    for table, family in (
        (_WORKER_GAUGES, GaugeMetricFamily),
        (_WORKER_COUNTERS, CounterMetricFamily),
    ):
        for name, meaning in table.items():
            metric = family(f"millpond_worker_{name}", meaning, labels=labels)
            for queue, own in alive.items():
                for worker in own:
                    if (value := getattr(worker.state, name)) is not None:
                        metric.add_metric([queue, worker.id, worker.state.model], value)
            yield metric
