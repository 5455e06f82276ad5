"""The worker's part of a job's trace: how it waited, and how it ran.

The spans of an attempt are made when it is over, from the times noted on its way: a row costs nothing while
it runs. They are under the span in which the job was submitted:

    queued                      acceptance to claim
    process QUEUE               claim to stored result
      window                    claim to admission: the request is read, and a slot comes free
      OPERATION MODEL           admission to the last token, as the conventions for generative AI have it
        prefill                 to the first token
        decode                  from the first token on
"""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from millpond.messages import JobResult
from millpond.queue.claims import Commit
from worker.jobs.in_flight import InFlightJob

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer
    from opentelemetry.util.types import AttributeValue

PROVIDER = "millpond"


class WorkerTraces:
    """A `JobObserver`. Jobs that were submitted without a trace have none."""

    def __init__(self, tracer: "Tracer", queue: str, model: str, worker_id: str) -> None:
        self._tracer = tracer
        self._queue = queue
        self._model = model
        self._worker_id = worker_id

    def claimed(self, jobs: Sequence[InFlightJob]) -> None:
        """Nothing is known yet."""

    def prepared(self, job: InFlightJob) -> None:
        """Nothing is over yet."""

    def settled(self, job: InFlightJob, result: JobResult, commit: Commit) -> None:
        error = None if result.error is None else result.error.code
        self._record(job, commit.value, result, error)

    def given_back(self, job: InFlightJob) -> None:
        self._record(job, "given_back", None, "given_back")

    def _record(
        self, job: InFlightJob, outcome: str, result: JobResult | None, error: str | None
    ) -> None:
        if job.claimed.traceparent is None:
            return
        carrier = {"traceparent": job.claimed.traceparent}
        parent = TraceContextTextMapPropagator().extract(carrier)
        now_s = time.monotonic()
        ended_s = now_s if job.ended_s is None else job.ended_s
        messaging: dict[str, AttributeValue] = {
            "messaging.system": "redis",
            "messaging.destination.name": self._queue,
            "messaging.message.id": job.id,
        }
        timeline = _Timeline(self._tracer, job)
        timeline.span("queued", parent, job.accepted_s, job.claimed_s, messaging)
        attempt = timeline.open(
            f"process {self._queue}",
            parent,
            job.claimed_s,
            messaging
            | {
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.client.id": self._worker_id,
                "millpond.attempt": job.claimed.attempt,
                "millpond.outcome": outcome,
            },
            SpanKind.CONSUMER,
        )
        inner = set_span_in_context(attempt)
        admitted_s = ended_s if job.admitted_s is None else job.admitted_s
        window = {"millpond.window.jobs": job.window_jobs}
        timeline.span("window", inner, job.claimed_s, admitted_s, window)
        if job.admitted_s is not None:
            self._record_generation(timeline, inner, job, result, error, ended_s)
        _fail(attempt, error)
        timeline.close(attempt, now_s)

    def _record_generation(
        self,
        timeline: "_Timeline",
        parent: "Context",
        job: InFlightJob,
        result: JobResult | None,
        error: str | None,
        ended_s: float,
    ) -> None:
        assert job.admitted_s is not None
        span = timeline.open(
            f"{job.operation} {self._model}", parent, job.admitted_s, self._asked(job)
        )
        inner = set_span_in_context(span)
        first_s = ended_s if job.first_token_s is None else job.first_token_s
        receipt = None if result is None else result.receipt
        rows: dict[str, AttributeValue] = {}
        if receipt is not None:
            rows = {"millpond.group.rows": receipt.group_rows}
        timeline.span("prefill", inner, job.admitted_s, first_s, rows)
        if job.first_token_s is not None:
            if receipt is not None:
                rows = {"millpond.batch.rows": receipt.batch_rows}
            timeline.span("decode", inner, first_s, ended_s, rows)
        if result is not None:
            span.set_attribute("gen_ai.response.finish_reasons", [result.finish_reason.value])
            if result.usage is not None:
                span.set_attribute("gen_ai.usage.input_tokens", result.usage.prompt_tokens)
                span.set_attribute("gen_ai.usage.output_tokens", result.usage.completion_tokens)
        _fail(span, error)
        timeline.close(span, ended_s)

    def _asked(self, job: InFlightJob) -> "dict[str, AttributeValue]":
        request = job.request
        given: dict[str, AttributeValue | None] = {
            "gen_ai.operation.name": job.operation,
            "gen_ai.provider.name": PROVIDER,
            "gen_ai.request.model": request.model or self._model,
            "gen_ai.response.model": self._model,
            "gen_ai.response.id": job.id,
            "gen_ai.request.max_tokens": job.prompt.max_tokens,
            "gen_ai.request.temperature": request.temperature,
            "gen_ai.request.top_p": request.top_p,
            "gen_ai.request.top_k": request.top_k,
            "gen_ai.request.seed": job.seed,
            "gen_ai.request.choice.count": request.n if request.n > 1 else None,
            "millpond.priority": request.priority.value,
        }
        return {name: value for name, value in given.items() if value is not None}


class _Timeline:
    """Spans of one job at given times of this process's monotonic clock.

    The claim is where that clock meets the server's, so all workers' spans are on one clock.
    """

    def __init__(self, tracer: "Tracer", job: InFlightJob) -> None:
        self._tracer = tracer
        self._claimed_ns = job.claimed.claimed_ms * 1_000_000
        self._claimed_s = job.claimed_s

    def open(
        self,
        name: str,
        parent: "Context",
        start_s: float,
        attributes: "Mapping[str, AttributeValue]",
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> "Span":
        return self._tracer.start_span(name, parent, kind, attributes, start_time=self._ns(start_s))

    def close(self, span: "Span", end_s: float) -> None:
        span.end(self._ns(end_s))

    def span(
        self,
        name: str,
        parent: "Context",
        start_s: float,
        end_s: float,
        attributes: "Mapping[str, AttributeValue]",
    ) -> None:
        self.close(self.open(name, parent, start_s, attributes), end_s)

    def _ns(self, at_s: float) -> int:
        return self._claimed_ns + round((at_s - self._claimed_s) * 1e9)


def _fail(span: "Span", error: str | None) -> None:
    if error is not None:
        span.set_attribute("error.type", error)
        span.set_status(StatusCode.ERROR)
