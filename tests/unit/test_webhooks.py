"""What is sent to a webhook, when it is tried again, and how many tries a receiver gets at once."""

import random

import orjson
import pytest
from pydantic import ValidationError

from background.webhooks.receivers import MAX_REMEMBERED, MAX_TRIES_AT_ONCE, REST_MAX_S, Receivers
from background.webhooks.retrying import RETRY_AFTER_S, SPREAD, retry_delay_s
from millpond.messages import FinishReason, JobRequest, JobResult, JobStatus
from millpond.messages.webhook_url import MAX_WEBHOOK_URL_CHARS
from millpond.webhooks.events import MAX_RESULT_BYTES, WebhookEvent, job_data, payload, webhook_id
from tests.integration.conftest import receipt

URL = "https://receiver.example/hook"


def result(text: str = "Paris.") -> JobResult:
    return JobResult(
        id="j",
        status=JobStatus.SUCCEEDED,
        finish_reason=FinishReason.STOP,
        text=text,
        receipt=receipt("a-host"),
    )


@pytest.mark.parametrize(
    "url",
    [
        URL,
        "http://receiver.example",
        "https://[2606:4700::1111]:8443/a?b=c%20d&e",
        "http://10.0.0.1:80/",
        "http://xn--bcher-kva.example/",
    ],
)
def test_such_a_url_is_accepted(url: str) -> None:
    request = JobRequest(prompt="a", webhook_url=url)
    assert JobRequest.from_json(request.to_json()).webhook_url == url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "must be http"),
        ("receiver.example", "must be http"),
        ("ftp://receiver.example/", "must be http"),
        ("file:///etc/passwd", "must be http"),
        ("https://user:secret@receiver.example/", "without user name"),
        ("https://receiver.example/#part", "fragment"),
        ("https://receiver.example\\@other.example/", "must be http"),
        ("https://receiver.example/\r\nHost: other.example", "must be http"),
        ("https://b\u00fccher.example/", "plain ASCII"),
        ("https://receiver.example:99999/", "the port 99999"),
        ("https://receiver.example:0/", "the port 0"),
        ("http://[0]/", "no IPv6 address"),
        ("https://receiver.example/" + "a" * MAX_WEBHOOK_URL_CHARS, "2048"),
    ],
)
def test_such_a_url_is_refused(url: str, said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        JobRequest(prompt="a", webhook_url=url)
    [error] = refused.value.errors()
    assert error["loc"] == ("webhook_url",)
    assert said in error["msg"]


def test_the_body_has_the_members_of_standard_webhooks() -> None:
    data = job_data("j", WebhookEvent.JOB_SUCCEEDED, result())
    body = orjson.loads(payload("evt_a", WebhookEvent.JOB_SUCCEEDED, 1_795_521_157_718, data))

    assert body["type"] == "job.succeeded"
    assert body["timestamp"] == "2026-11-24T11:52:37.718Z"
    assert (body["id"], body["object"], body["created_at"]) == ("evt_a", "event", 1_795_521_157)
    assert (body["data"]["id"], body["data"]["status"]) == ("j", "succeeded")
    assert body["data"]["result"]["text"] == "Paris."
    assert "a-host" not in str(body), "a worker's name is not for everybody"


def test_a_result_that_is_gone_or_large_is_not_sent_along() -> None:
    assert job_data("j", "job.expired", None) == {"id": "j", "status": "expired"}
    assert "result" not in job_data("j", "job.succeeded", result("a" * MAX_RESULT_BYTES))


def test_a_webhook_id_belongs_to_one_event() -> None:
    event = ("q", "job.failed", "j", 1)
    others = [("r", *event[1:]), ("q", "job.succeeded", "j", 1), ("q", "job.failed", "k", 1)]

    assert webhook_id(*event) == webhook_id(*event)
    assert "." not in webhook_id(*event), "signatures are over ID.TIME.BODY"
    assert len({webhook_id(*one) for one in [event, *others, ("q", "job.failed", "j", 2)]}) == 5


def test_retries_go_on_for_hours_and_end() -> None:
    chance = random.Random(1)
    delays = [retry_delay_s(tries, chance) for tries in range(1, len(RETRY_AFTER_S) + 1)]

    for delay, least in zip(delays, RETRY_AFTER_S, strict=True):
        assert delay is not None
        assert least <= delay <= least * (1 + SPREAD)
    assert 12 * 3600 < sum(RETRY_AFTER_S) < 24 * 3600
    assert retry_delay_s(len(RETRY_AFTER_S) + 1, chance) is None


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_receiver_that_is_dead_rests_longer_each_time() -> None:
    clock = Clock()
    receivers = Receivers(clock)
    waits = []
    for _ in range(9):
        receivers.begin(URL)
        receivers.end(URL, answered=False)
        waits.append(receivers.wait_s(URL + "/other"))
        clock.now_s += waits[-1]

    assert waits == [1, 2, 4, 8, 16, 32, REST_MAX_S, REST_MAX_S, REST_MAX_S]
    assert receivers.wait_s(URL) == 0
    assert receivers.wait_s("https://another.example/") == 0
    receivers.begin(URL)
    receivers.end(URL, answered=True)
    receivers.begin(URL)
    receivers.end(URL, answered=False)
    assert receivers.wait_s(URL) == 1, "an answer makes up for all failures"


def test_a_receiver_gets_a_few_tries_at_once() -> None:
    receivers = Receivers(Clock())
    for _ in range(MAX_TRIES_AT_ONCE):
        assert receivers.wait_s(URL) == 0
        receivers.begin(URL)
    assert receivers.wait_s(URL) > 0
    receivers.end(URL, answered=True)
    assert receivers.wait_s(URL) == 0


def test_receivers_are_not_remembered_for_ever() -> None:
    clock = Clock()
    receivers = Receivers(clock)
    for i in range(3 * MAX_REMEMBERED):
        clock.now_s += 1
        receivers.begin(f"https://{i}.example/")
        receivers.end(f"https://{i}.example/", answered=False)

    assert len(receivers._known) <= MAX_REMEMBERED + 1
