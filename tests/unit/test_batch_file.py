"""Lines of a batch file: what is a job, what is a bad line, what comes out."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from millpond.messages import (
    Choice,
    FinishReason,
    GeneratedToken,
    JobError,
    JobResult,
    JobStatus,
    Priority,
    Receipt,
    TokenLogprob,
    Usage,
)
from millpond.openai.batch_file import (
    BadLine,
    Earlier,
    Row,
    error_line,
    keep_finished,
    output_line,
    read_rows,
)


def line(custom_id: str = "a", url: str = "/v1/chat/completions", **body: Any) -> bytes:
    if url.endswith("chat/completions"):
        body.setdefault("messages", [{"role": "user", "content": "hi"}])
    fields = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
    return orjson.dumps(fields) + b"\n"


def only(data: bytes) -> Row | BadLine:
    [item] = read_rows([data])
    return item


def test_a_chat_line_becomes_a_batch_job() -> None:
    row = only(line(model="any", max_tokens=5, temperature=0, stop="x", ignore_eos=True, seed=3))
    assert isinstance(row, Row)
    assert row.chat
    request = row.request
    assert (request.max_tokens, request.temperature, request.stop) == (5, 0, ["x"])
    assert (request.ignore_eos, request.seed, request.stream) == (True, 3, False)
    assert request.priority is Priority.BATCH
    assert request.model == "any"


def test_a_completion_line_is_raw_text() -> None:
    row = only(line(url="/v1/completions", prompt="Once", max_tokens=5))
    assert isinstance(row, Row)
    assert not row.chat
    assert row.request.raw
    assert row.request.prompt == "Once"


def test_the_newer_name_of_max_tokens() -> None:
    row = only(line(max_completion_tokens=9))
    assert isinstance(row, Row)
    assert row.request.max_tokens == 9


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"bad', "not JSON"),
        (b"[1]", "valid dictionary"),
        (b'{"custom_id": "a"}', "method"),
        (line(custom_id=""), "custom_id"),
        (line(url="/v1/embeddings"), "url"),
        (line(messages=[]), "messages"),
        (line(frobnicate=1), "frobnicate"),
        (line(top_logprobs=3), "top_logprobs"),
        (line(logprobs=True, top_logprobs=21), "logprobs"),
        (line(url="/v1/completions", prompt="a", logprobs=True), "logprobs"),
        (line(logit_bias={"no": 1}), "logit_bias"),
        (line(max_tokens=0), "max_tokens"),
        (line(response_format={"type": "yaml"}), "response_format.type"),
        (line(guided_regex="a" * 100_000), "65536"),
        (line(temperature=-1), "temperature"),
        (line(url="/v1/completions", prompt=""), "prompt"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_bad_lines_say_what_is_wrong(data: bytes, words: str) -> None:
    bad = only(data)
    assert isinstance(bad, BadLine)
    assert words in bad.message
    fields = orjson.loads(error_line(bad))
    assert fields["response"] is None
    assert fields["error"]["message"].startswith("line 1: ")


def test_blank_lines_a_bom_and_a_repeated_id() -> None:
    items = list(read_rows([b"\xef\xbb\xbf" + line("a"), b"\n", line("b"), line("a")]))
    assert [type(i) for i in items] == [Row, Row, BadLine]
    assert isinstance(items[2], BadLine)
    assert items[2].line_number == 4
    assert "line 1" in items[2].message


RECEIPT = Receipt(
    attempt=1,
    worker="w",
    model="served",
    engine="simulated",
    dtype="none",
    device="none",
    seed=1,
    claimed_ms=1,
    queue_wait_ms=1.0,
    window_jobs=1,
    group_rows=1,
    batch_rows=1.0,
    first_token_ms=1.0,
    run_ms=1.0,
)


def succeeded(row: Row) -> JobResult:
    return JobResult(
        id="j1",
        status=JobStatus.SUCCEEDED,
        finish_reason=FinishReason.LENGTH,
        text="hello",
        token_ids=[1, 2],
        usage=Usage(prompt_tokens=3, completion_tokens=2),
        receipt=RECEIPT,
        finished_ms=1_700_000_000_500,
    )


def test_output_has_openai_shape() -> None:
    row = only(line("r7"))
    assert isinstance(row, Row)
    fields = orjson.loads(output_line(row, succeeded(row)))
    assert fields["custom_id"] == "r7"
    assert fields["error"] is None
    assert fields["response"]["status_code"] == 200
    body = fields["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["created"] == 1_700_000_000
    assert body["model"] == "served", "the one that wrote it, whatever was asked for"
    assert body["choices"] == [
        {
            "index": 0,
            "finish_reason": "length",
            "logprobs": None,
            "message": {"role": "assistant", "content": "hello", "refusal": None},
            "token_ids": [1, 2],
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_each_of_n_texts_is_a_choice() -> None:
    row = only(line("r7", n=2))
    assert isinstance(row, Row)
    assert row.request.n == 2
    stop, length = FinishReason.STOP, FinishReason.LENGTH
    texts = [
        Choice(index=0, finish_reason=length, text="hello", token_ids=[1, 2]),
        Choice(index=1, finish_reason=stop, text="bye"),
    ]
    result = succeeded(row).model_copy(update={"choices": texts})
    choices = orjson.loads(output_line(row, result))["response"]["body"]["choices"]
    assert [(c["index"], c["finish_reason"], c["message"]["content"]) for c in choices] == [
        (0, "length", "hello"),
        (1, "stop", "bye"),
    ]
    assert choices[0]["token_ids"] == [1, 2]


def test_a_row_that_looped_says_so() -> None:
    row = only(line(loop_repeats=8))
    assert isinstance(row, Row)
    assert row.request.loop_repeats == 8
    looped = succeeded(row).model_copy(update={"finish_reason": FinishReason.LOOP})
    fields = orjson.loads(output_line(row, looped))
    assert fields["response"]["body"]["choices"][0]["finish_reason"] == "loop"


def test_a_failed_row_names_its_line() -> None:
    row = only(line("r7"))
    assert isinstance(row, Row)
    failed = JobResult(
        id="j1",
        status=JobStatus.FAILED,
        finish_reason=FinishReason.ERROR,
        error=JobError(code="prompt_too_long", message="too long"),
    )
    fields = orjson.loads(output_line(row, failed))
    assert fields["response"] is None
    assert fields["error"] == {"code": "prompt_too_long", "message": "too long", "line": 1}


def test_a_rerun_keeps_good_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    row = only(line("good"))
    assert isinstance(row, Row)
    good = output_line(row, succeeded(row))
    failed = output_line(row, JobResult(id="j", status=JobStatus.FAILED, finish_reason="error"))
    path.write_bytes(good + error_line(BadLine(2, "bad", "x")) + failed + good[:40])
    assert keep_finished(path) == Earlier(done={"good"}, bad_lines={2})
    assert path.read_bytes() == good
    assert keep_finished(tmp_path / "none.jsonl") == Earlier(set(), set())


def test_a_line_without_an_id_is_named_by_its_number() -> None:
    fields = orjson.loads(error_line(BadLine(7, None, "x")))
    assert fields["custom_id"] is None
    assert fields["id"] == "batch_req_line-7"


def test_a_row_asks_for_the_model_of_its_line_unless_any_will_do() -> None:
    asks = line(model="gpt-4")
    [strict] = read_rows([asks])
    [lax] = read_rows([asks], any_model=True)
    assert isinstance(strict, Row)
    assert isinstance(lax, Row)
    assert strict.request.model == "gpt-4"
    assert lax.request.model is None


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 4}, 4),
        ({"logprobs": False}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": None}, None),
        ({}, None),
    ],
)
def test_a_chat_lines_two_fields_of_logprobs_are_one_number(
    fields: dict[str, Any], count: int | None
) -> None:
    row = only(line(**fields))
    assert isinstance(row, Row)
    assert row.request.logprobs == count


def with_logprobs(row: Row) -> dict[str, Any]:
    """The choice of a result with two tokens, the second of them half a character."""
    half = TokenLogprob(token_id=9, token="\ufffd", logprob=-0.5)
    tokens = [
        GeneratedToken(token_id=7, token="hé", logprob=-0.25, top=[]),
        GeneratedToken(
            token_id=9,
            token="\ufffd",
            logprob=-0.5,
            top=[half, TokenLogprob(token_id=8, token="\ufffd", logprob=-2.0)],
        ),
    ]
    result = succeeded(row).model_copy(update={"logprobs": tokens, "prompt_token_ids": [3, 4]})
    body = orjson.loads(output_line(row, result))["response"]["body"]
    assert body["prompt_token_ids"] == [3, 4]
    return dict(body["choices"][0]["logprobs"])


def test_logprobs_of_a_chat() -> None:
    row = only(line(logprobs=True))
    assert isinstance(row, Row)
    first, second = with_logprobs(row)["content"]
    assert first == {
        "token": "hé",
        "token_id": 7,
        "logprob": -0.25,
        "bytes": [104, 195, 169],
        "top_logprobs": [],
    }
    assert [other["token_id"] for other in second["top_logprobs"]] == [9, 8]
    assert second["bytes"] is None


def test_logprobs_of_a_completion() -> None:
    row = only(line(url="/v1/completions", prompt="Once", logprobs=2))
    assert isinstance(row, Row)
    assert row.request.logprobs == 2
    assert with_logprobs(row) == {
        "tokens": ["hé", "\ufffd"],
        "token_ids": [7, 9],
        "token_logprobs": [-0.25, -0.5],
        "top_logprobs": [{}, {"\ufffd": -0.5}],
        "text_offset": [0, 2],
    }


def test_a_line_is_what_the_route_itself_takes() -> None:
    told = only(line(messages=[{"role": "developer", "content": "Be short."}], user="u7", tools=[]))
    assert isinstance(told, Row)
    assert told.request.messages is not None
    assert told.request.messages[0].role == "system"
    assert told.request.metadata == {"user": "u7"}
    ids = only(line(url="/v1/completions", prompt=[1, 2, 3]))
    assert isinstance(ids, Row)
    assert ids.request.token_ids == [1, 2, 3]
    refused = only(line(tools=[{"type": "function"}]))
    assert isinstance(refused, BadLine)
    assert "tools" in refused.message
