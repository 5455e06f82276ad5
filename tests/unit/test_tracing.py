"""Whether traces are asked for, and what is said of an attempt that did not succeed."""

import socket
import sys
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from millpond.errors import InvalidRequestError
from millpond.messages import FinishReason, JobError, JobRequest, JobResult, JobStatus
from millpond.models.prompts import PreparedPrompt
from millpond.queue.claims import ClaimedJob, Commit
from millpond.queue.submission import NewJob, script_fields
from millpond.tracing import TracingError, is_asked_for, tracing
from worker.jobs.in_flight import InFlightJob
from worker.traces import WorkerTraces

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ENDPOINT, "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(spans: InMemorySpanExporter) -> Iterator[WorkerTraces]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    yield WorkerTraces(provider.get_tracer("test"), "q", "m", "w1")
    provider.shutdown()


def in_flight(traceparent: str | None = PARENT) -> InFlightJob:
    claimed = ClaimedJob(
        "a", 1, 1, claimed_ms=5000, queue_wait_ms=3000, body=b"", traceparent=traceparent
    )
    return InFlightJob(claimed, window_jobs=2)


def names(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, False),
        ({ENDPOINT: "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({ENDPOINT: "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({ENDPOINT: "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_standard_variables_decide(
    variables: dict[str, str], asked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_asked_for() is asked


def test_nothing_is_traced_unless_asked_for() -> None:
    with tracing("s") as tracer:
        assert tracer is None


def test_a_collector_that_does_not_answer_delays_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millpond.tracing.FLUSH_S", 0.05)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv(ENDPOINT, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with tracing("s") as tracer:
            assert tracer is not None
            tracer.start_span("lost").end()
        [flush] = [t for t in threading.enumerate() if t.name == "flush-spans"]
        assert flush.daemon, "it is left behind, and holds no process"
        flush.join(10)
        assert not flush.is_alive()


def test_another_protocol_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://c:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(TracingError, match="not by grpc"), tracing("s"):
        pass


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, "http://c:4318")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracingError, match=r"millpond\[tracing\]"), tracing("s"):
        pass


def test_a_job_that_never_reached_the_engine_says_why(
    traces: WorkerTraces, spans: InMemorySpanExporter
) -> None:
    job = in_flight()
    error = JobError(code="does_not_fit", message="a secret")
    result = JobResult(
        id="a", status=JobStatus.FAILED, finish_reason=FinishReason.ERROR, error=error
    )
    traces.settled(job, result, Commit.STORED)
    found = names(spans)
    assert found.keys() == {"queued", "process q", "window"}
    queued, attempt = found["queued"], found["process q"]
    assert (queued.start_time, queued.end_time) == (2_000_000_000, 5_000_000_000)
    assert attempt.attributes is not None
    assert attempt.attributes["error.type"] == "does_not_fit"
    assert attempt.attributes["millpond.outcome"] == "stored"
    assert "secret" not in attempt.to_json()


def test_a_job_that_is_given_back_leaves_a_span_of_its_attempt(
    traces: WorkerTraces, spans: InMemorySpanExporter
) -> None:
    job = in_flight()
    job.prepared(JobRequest(prompt="x"), PreparedPrompt([1], 8, truncated=False))
    job.admitted_s = job.claimed_s + 1
    traces.given_back(job)
    found = names(spans)
    assert found.keys() == {"queued", "process q", "window", "chat m", "prefill"}
    assert all(not found[name].status.is_ok for name in ("process q", "chat m"))


def test_a_job_without_a_trace_has_no_spans(
    traces: WorkerTraces, spans: InMemorySpanExporter
) -> None:
    traces.given_back(in_flight(traceparent=None))
    assert spans.get_finished_spans() == ()


@pytest.mark.parametrize("given", ["", "00-x", PARENT.replace("00-", "ff-", 1), PARENT + "-more"])
def test_a_malformed_traceparent_is_refused(given: str) -> None:
    with pytest.raises(InvalidRequestError, match="traceparent"):
        script_fields("a", NewJob(JobRequest(prompt="x"), traceparent=given))
