"""From the bytes of an input file to rows in the order in which they run, or to what is wrong with it."""

import io
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from background.batches import checking
from background.batches.checking import CheckedFile, GivenUpError, check_file
from millpond.batches.order import PREFIX_CHARS, order_key, run_order
from millpond.batches.rows import decode_rows
from millpond.messages import JobRequest
from millpond.openai.batch_file import MAX_LINE_BYTES, read_rows, split_lines

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
QUEUES = {"small": "default", "large": "large"}


def line(custom_id: str, text: str = "hi", url: str = CHAT, **body: Any) -> bytes:
    given = {"messages": [{"role": "user", "content": text}]} if url == CHAT else {"prompt": text}
    fields = {"custom_id": custom_id, "method": "POST", "url": url, "body": {**given, **body}}
    return orjson.dumps(fields) + b"\n"


def check(*blocks: bytes) -> CheckedFile:
    return check_file(
        blocks, io.BytesIO(), route=CHAT, queues=QUEUES, home="default", given_up=lambda: False
    )


def test_rows_come_out_by_model_and_length() -> None:
    checked = check(
        line("a", "x" * 30) + line("b", "x", model="large")[:40],
        line("b", "x", model="large")[40:],
        b"\n" + line("c", "x" * 9, model="small") + line("d", "xx").rstrip(b"\n"),
    )
    assert not checked.problems
    assert (checked.total, checked.models) == (4, {"small", "large"})
    [(first, data)] = checked.objects()
    rows = list(decode_rows(data))
    assert first == 0
    assert [row.row.custom_id for row in rows] == ["d", "c", "a", "b"]
    assert [row.queue for row in rows] == ["default"] * 3 + ["large"]
    [(again)] = read_rows([line("a", "x" * 30)])
    assert rows[2].row == again, "as run-batch reads it"


def test_objects_are_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "ROWS_AN_OBJECT", 3)
    monkeypatch.setattr(checking, "OBJECT_BYTES", 1_000)
    sizes = [1, 1, 1, 1, 500, 600, 1_500, 1]
    checked = check(*(line(str(i), "x" * size) for i, size in enumerate(sizes)))
    pieces = [(first, len(list(decode_rows(data)))) for first, data in checked.objects()]
    assert sum(n for _, n in pieces) == len(sizes)
    assert [first for first, _ in pieces] == [
        sum(n for _, n in pieces[:i]) for i in range(len(pieces))
    ]
    assert all(n <= 3 for _, n in pieces)


def test_every_bad_line_is_told_with_its_number_and_field() -> None:
    checked = check(
        line("a"),
        b"not json\n",
        line("a"),
        line("b", url=COMPLETIONS),
        line("c", model="other"),
        line("d", temperature=-1),
        b'{"custom_id": "' + b"x" * (MAX_LINE_BYTES + 5) + b'"}\n',
    )
    found = [(p.line, p.code, p.param) for p in checked.problems]
    assert found == [
        (2, "invalid_json_line", None),
        (3, "duplicate_custom_id", "custom_id"),
        (4, "mismatched_endpoint", "url"),
        (5, "model_not_found", "body.model"),
        (6, "invalid_request", "temperature"),
        (7, "line_too_long", None),
    ]
    assert "there is large, small" in checked.problems[3].message
    assert str(MAX_LINE_BYTES) in checked.problems[5].message


def test_limits_and_an_empty_file(monkeypatch: pytest.MonkeyPatch) -> None:
    [empty] = check(b"\n\n").problems
    assert empty.code == "empty_file"
    monkeypatch.setattr(checking, "MAX_ROWS", 2)
    [many] = check(line("a"), line("b"), line("c")).problems
    assert (many.code, many.line) == ("too_many_requests", 3)
    assert "more than 2 requests" in many.message
    monkeypatch.setattr(checking, "MAX_PROBLEMS", 2)
    checked = check(b"x\n" * 5)
    assert (len(checked.problems), checked.more_problems) == (2, 3)


def test_it_gives_up_when_told() -> None:
    def endless() -> Iterator[bytes]:
        number = 0
        while True:
            number += 1
            yield line(str(number))

    with pytest.raises(GivenUpError):
        check_file(
            endless(),
            io.BytesIO(),
            route=CHAT,
            queues=QUEUES,
            home="default",
            given_up=lambda: True,
        )


def test_a_line_that_never_ends_is_not_kept() -> None:
    blocks = (b"x" * 1_000_000 for _ in range(20))
    [cut] = split_lines(blocks)
    assert len(cut) == MAX_LINE_BYTES + 1


def test_prompts_that_share_a_prefix_follow_one_another() -> None:
    shared = "s" * PREFIX_CHARS
    prompts = ["x" * 10, shared + "b" * 40, "y" * 500, shared + "a", "z" * 300, shared + "c" * 9]
    keys = [order_key("q", JobRequest(prompt=text, raw=True), len(text)) for text in prompts]
    order = run_order(keys)
    places = [order.index(i) for i in (3, 5, 1)]
    assert places == [places[0], places[0] + 1, places[0] + 2], "by length among themselves"
    assert [i for i in order if i in (0, 2, 4)] == [0, 4, 2]
