"""OpenTelemetry traces: whether they are asked for, and where they go.

OpenTelemetry's own variables decide (`OTEL_EXPORTER_OTLP_ENDPOINT` and the others). Without them nothing of
OpenTelemetry is imported. Spans hold ids, counts and settings, and never a prompt or a text.
"""

import contextlib
import os
import re
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from millpond.errors import MillpondError

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext, Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
PROTOCOL = "http/protobuf"
# For spans that have not been sent when the process ends. The SDK's own limits are ten seconds and more.
FLUSH_S = 2.0
# https://www.w3.org/TR/trace-context/, version 00.
TRACEPARENT_PATTERN = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class TracingError(MillpondError):
    """Traces are asked for, and cannot be made."""

    code = "tracing_failed"


def is_asked_for() -> bool:
    """Whether the environment names a collector, and does not switch tracing off."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    off = off or os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    return not off and any(os.environ.get(name) for name in ENDPOINTS)


@contextlib.contextmanager
def tracing(service: str) -> Iterator["Tracer | None"]:
    """A tracer whose spans are exported until the block ends; None: traces are not asked for.

    ``service`` is the service's name unless ``OTEL_SERVICE_NAME`` gives one. Raises TracingError.
    """
    if not is_asked_for():
        yield None
        return
    protocol = next(filter(None, map(os.environ.get, PROTOCOLS)), PROTOCOL)
    if protocol != PROTOCOL:
        raise TracingError(f"traces are sent by {PROTOCOL}, not by {protocol}: set {PROTOCOLS[1]}")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingError(
            f"{ENDPOINTS[1]} asks for traces, which need the extra: pip install 'millpond[tracing]'"
        ) from error
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: service}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield provider.get_tracer("millpond")
    finally:
        # Left behind if the collector does not answer: nobody waits for spans.
        flush = threading.Thread(target=provider.shutdown, name="flush-spans", daemon=True)
        flush.start()
        flush.join(FLUSH_S)


def traceparent(context: "SpanContext") -> str | None:
    """As W3C's header has it; None for a trace that is not recorded."""
    if not context.trace_flags.sampled:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & 1:02x}"
