"""One trace, from the client's through HTTP and the queue to the row in the batch."""

from collections.abc import Awaitable, Callable

import httpx
import pytest

from tests.acceptance.conftest import Up, until
from tests.otlp import attributes, otlp_receiver

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SPANS = (
    "POST /v1/jobs",
    "queued",
    "process default",
    "window",
    "chat simulated",
    "prefill",
    "decode",
)


async def test_a_trace_leads_from_the_request_to_the_row(
    up: Callable[..., Awaitable[Up]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with otlp_receiver() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.endpoint)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        stack = await up("--engine", "simulated", "--port", "0")
        async with httpx.AsyncClient(base_url=stack.about.api_url) as http:
            answer = await http.post(
                "/v1/jobs",
                json={"prompt": "a secret", "max_tokens": 8, "min_tokens": 2, "temperature": 0.5},
                headers={"traceparent": f"00-{TRACE}-{CALLER}-01"},
            )
            id = answer.json()["id"]
            result = (await http.get(f"/v1/jobs/{id}?wait=20")).json()["result"]
            await http.post("/v1/jobs", json={"prompt": "unsampled"}, headers={
                "traceparent": f"00-{TRACE}-{CALLER}-00"})  # fmt: skip
        await until(lambda: all(map(received.named, SPANS)), 10, "all spans are received")
        assert await stack.stop() == 0

    spans = {name: received.named(name) for name in SPANS}
    ours = [span for span in received.spans if span.trace_id.hex() == TRACE]
    assert sorted(span.name for span in ours) == sorted(SPANS), "one trace, and each span once"
    parents = {name: span and span.parent_span_id.hex() for name, span in spans.items()}
    ids = {name: span and span.span_id.hex() for name, span in spans.items()}
    assert parents == {
        "POST /v1/jobs": CALLER,
        "queued": ids["POST /v1/jobs"],
        "process default": ids["POST /v1/jobs"],
        "window": ids["process default"],
        "chat simulated": ids["process default"],
        "prefill": ids["chat simulated"],
        "decode": ids["chat simulated"],
    }
    by_name = {span.name: span for span in ours}
    assert received.service(by_name["POST /v1/jobs"]) == "millpond-api"
    assert received.service(by_name["decode"]) == "millpond-worker"
    order = [
        (by_name[name].start_time_unix_nano, by_name[name].end_time_unix_nano) for name in SPANS
    ]
    assert all(start <= end for start, end in order)
    times = dict(zip(SPANS, order, strict=True))
    assert times["queued"][1] == times["window"][0] == times["process default"][0]
    assert times["window"][1] == times["prefill"][0] == times["chat simulated"][0]
    assert times["prefill"][1] == times["decode"][0]
    told = attributes(by_name["chat simulated"])
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.temperature"] == 0.5
    assert told["gen_ai.usage.output_tokens"] == result["usage"]["completion_tokens"]
    assert told["gen_ai.response.finish_reasons"] == [result["finish_reason"]]
    assert attributes(by_name["queued"])["messaging.message.id"] == id
    assert attributes(by_name["POST /v1/jobs"])["http.response.status_code"] == 202
    assert not any("secret" in str(span) for span in received.spans)
