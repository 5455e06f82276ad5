"""The worker's own Prometheus metrics: what it measures on the way of each job.

Names, labels and buckets are those of OpenTelemetry's semantic conventions for generative AI where there
are such, as its Prometheus exporter writes them; the others begin with ``millpond_``. What Redis knows, such
as queue depth and dead letters, the API exports.
"""

import contextlib
from collections.abc import Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    start_http_server,
)

from millpond.errors import MillpondError
from millpond.messages import JobResult, JobStatus
from millpond.queue.claims import Commit
from worker.engines.base import RowStats
from worker.jobs.in_flight import InFlightJob

# The conventions' own, but for the last ones: jobs may wait for long.
FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(30.0, 60.0, 300.0, 1800.0),
)
OUTPUT_TOKEN_BUCKETS = (*(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),)
DURATION_BUCKETS = (
    *(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    *(300.0, 1800.0, 7200.0),
)
WAIT_BUCKETS = (0.01, 0.05, 0.1, 0.3, 0.6, 0.8, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
ROWS_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0, 128.0, 256.0)

PROVIDER = "millpond"


class MetricsPortError(MillpondError):
    """The address for the worker's metrics cannot be listened on."""

    code = "metrics_port_taken"


class WorkerMetrics:
    """A `JobObserver`. One registry for each worker, so that several can live in one process."""

    def __init__(self, queue: str, model: str) -> None:
        self._queue = queue
        self._model = model
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own = ["queue"]
        conventional = [
            "gen_ai_operation_name",
            "gen_ai_provider_name",
            "gen_ai_request_model",
            "gen_ai_response_model",
        ]
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "From a job's acceptance to its end, successful or not.",
            [*own, *conventional, "error_type"],
            buckets=DURATION_BUCKETS,
            registry=self.registry,
        )
        self._first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "From a job's acceptance to its first token; of those that succeed.",
            [*own, *conventional],
            buckets=FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self._output_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Mean time between the tokens of a job after the first; of those that succeed.",
            [*own, *conventional],
            buckets=OUTPUT_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "millpond_tokens_total",
            "Tokens of jobs that have ended: prompts read, and outputs.",
            [*own, "gen_ai_response_model", "gen_ai_token_type"],
            registry=self.registry,
        )
        self._wait = Histogram(
            "millpond_queue_wait_seconds",
            "From a job's acceptance to its claim by this worker.",
            [*own, "priority"],
            buckets=WAIT_BUCKETS,
            registry=self.registry,
        )
        self._window = Histogram(
            "millpond_window_jobs",
            "Jobs that one claim gave.",
            own,
            buckets=ROWS_BUCKETS,
            registry=self.registry,
        )
        self._batch = Histogram(
            "millpond_batch_rows",
            "Rows of the batch, at each step.",
            own,
            buckets=ROWS_BUCKETS,
            registry=self.registry,
        )
        self._drafted = Counter(
            "millpond_draft_tokens_total",
            "Tokens drafted ahead of rows that have ended.",
            own,
            registry=self.registry,
        )
        self._accepted = Counter(
            "millpond_accepted_tokens_total",
            "Drafted tokens that were the row's next ones.",
            own,
            registry=self.registry,
        )
        self._attempts = Counter(
            "millpond_attempts_total",
            "Attempts of this worker: how the job ended, or retry, or given_back, or lost.",
            [*own, "outcome"],
            registry=self.registry,
        )
        # Known before the first event, so that rates and alerts begin with it.
        for outcome in (*(s for s in JobStatus if s.terminal), "retry", "given_back", "lost"):
            self._attempts.labels(queue, outcome)

    @contextlib.contextmanager
    def served(self, host: str, port: int) -> Iterator[int]:
        """Serve them at ``/metrics`` for the duration of the block, in a thread; the port.

        Raises MetricsPortError.
        """
        try:
            server, thread = start_http_server(port, host, registry=self.registry)
        except OSError as error:
            raise MetricsPortError(
                f"cannot serve metrics on {host}, port {port}: {error.strerror}"
            ) from error
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def stepped(self, rows: int) -> None:
        """The engine took a step with these rows."""
        if rows:
            self._batch.labels(self._queue).observe(rows)

    def ended(self, stats: RowStats) -> None:
        """A row has ended."""
        self._drafted.labels(self._queue).inc(stats.drafted_tokens)
        self._accepted.labels(self._queue).inc(stats.accepted_tokens)

    def claimed(self, jobs: Sequence[InFlightJob]) -> None:
        if jobs:
            self._window.labels(self._queue).observe(len(jobs))

    def prepared(self, job: InFlightJob) -> None:
        wait_s = job.claimed.queue_wait_ms / 1000
        self._wait.labels(self._queue, job.request.priority).observe(wait_s)

    def settled(self, job: InFlightJob, result: JobResult, commit: Commit) -> None:
        if commit in (Commit.LOST, Commit.RETRY):
            self._attempts.labels(self._queue, commit.value).inc()
            return
        self._attempts.labels(self._queue, result.status.value).inc()
        if result.usage is not None:
            for kind, number in (
                ("input", result.usage.prompt_tokens),
                ("output", result.usage.completion_tokens),
            ):
                self._tokens.labels(self._queue, self._model, kind).inc(number)
        if job.operation is None or job.ended_s is None:
            return
        labels = [self._queue, job.operation, PROVIDER, self._model, self._model]
        error = "" if result.error is None else result.error.code
        self._duration.labels(*labels, error).observe(job.ended_s - job.accepted_s)
        if result.status is not JobStatus.SUCCEEDED or job.first_token_s is None:
            return
        self._first_token.labels(*labels).observe(job.first_token_s - job.accepted_s)
        assert result.usage is not None, "it succeeded"
        own_tokens = result.usage.completion_tokens - job.resumed_tokens
        later_tokens = own_tokens / len(job.rows) - 1
        if later_tokens > 0:
            decoding_s = job.ended_s - job.first_token_s
            self._output_token.labels(*labels).observe(decoding_s / later_tokens)

    def given_back(self, job: InFlightJob) -> None:
        self._attempts.labels(self._queue, "given_back").inc()
