"""The remote engine against an upstream that is slow, busy, broken or wrong."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from millpond.errors import ModelLoadError
from millpond.messages import FinishReason, JobRequest, Message
from millpond.models.grammars import GrammarCompiler
from millpond.models.presets import THINK, Preset
from millpond.models.tokenization import ByteTokenizer
from tests.upstream import NORMAL, Behaviour, Upstream
from worker.engines.base import (
    Delta,
    EngineConfig,
    EngineNotReadyError,
    Finished,
    GenerationRequest,
    RejectionCode,
    Sampling,
)
from worker.engines.remote.config import RemoteConfig
from worker.engines.remote.engine import RemoteEngine
from worker.engines.remote.row import MAX_FAILURES
from worker.engines.remote.upstream import MisconfiguredError

TOKENIZER = ByteTokenizer()
LIMIT_S = 20.0

Connect = Callable[..., RemoteEngine]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Engines at an upstream, closed after the test; the probe is not in ``bodies``."""
    engines: list[RemoteEngine] = []

    def connect(upstream: Upstream, slots: int = 8, **remote: Any) -> RemoteEngine:
        preset = Preset(name="tiny", source="", context_tokens=4096)
        config = EngineConfig("remote", None, preset, slots=slots)
        remote.setdefault("timeout_s", 5.0)
        engines.append(
            RemoteEngine.connect(config, TOKENIZER, RemoteConfig(upstream.url, **remote))
        )
        upstream.bodies.clear()
        return engines[-1]

    yield connect
    for engine in engines:
        engine.close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


def request(row_id: str = "r", **sampling: Any) -> GenerationRequest:
    values = {"max_tokens": 20, "seed": 1, "ignore_eos": True, **sampling}
    prompt = f"prompt of {row_id}"
    turns = (Message(role="user", content=prompt),)
    return GenerationRequest(row_id, TOKENIZER.encode(prompt), Sampling(**values), messages=turns)


def drain(
    engine: RemoteEngine,
    until: Callable[[], bool] = lambda: False,
    texts: dict[str, str] | None = None,
) -> dict[str, Finished]:
    """Step until all rows have ended, or ``until``; checks that deltas add up to the ends.

    ``texts`` holds what earlier calls saw of the rows.
    """
    ends: dict[str, Finished] = {}
    texts = {} if texts is None else texts
    give_up_s = time.monotonic() + LIMIT_S
    while engine.num_rows and not until():
        assert time.monotonic() < give_up_s, "the rows do not end"
        for event in engine.step():
            assert event.id not in ends
            if isinstance(event, Delta):
                texts[event.id] = texts.get(event.id, "") + event.text
            else:
                ends[event.id] = event
                assert event.text == texts.get(event.id, "")
    return ends


def run(engine: RemoteEngine, *requests: GenerationRequest) -> dict[str, Finished]:
    assert engine.admit(requests) == []
    return drain(engine)


def wait_until(condition: Callable[[], bool]) -> None:
    """What the upstream notices in its own thread, without a further step of the engine."""
    give_up_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.005)


def whole(connect: Connect, row: GenerationRequest, **remote: Any) -> Finished:
    """The row as an upstream without faults makes it."""
    with Upstream() as upstream:
        return run(connect(upstream, **remote), row)[row.id]


@pytest.mark.parametrize(
    "fault",
    [
        Behaviour(cut_after=0),
        Behaviour(cut_after=7),
        Behaviour(end_after=7),
        Behaviour(junk_after=7),
        Behaviour(error_after=7),
        Behaviour(status=429),
        Behaviour(status=500),
        Behaviour(status=503),
    ],
    ids=str,
)
@pytest.mark.parametrize("route", ["completions", "chat"])
def test_a_fault_on_the_way_changes_no_text(
    upstream: Upstream, connect: Connect, fault: Behaviour, route: str
) -> None:
    """Whether it goes on behind its tokens or begins again, nothing is missing and nothing twice."""
    engine = connect(upstream, route=route)
    upstream.script.append(fault)
    end = run(engine, request())["r"]
    reference = whole(connect, request(), route=route)
    assert (end.text, end.token_ids, end.reason, end.usage) == (
        reference.text,
        reference.token_ids,
        FinishReason.LENGTH,
        reference.usage,
    )
    assert len(upstream.bodies) == 2


def test_a_cut_row_goes_on_behind_its_tokens(upstream: Upstream, connect: Connect) -> None:
    engine = connect(upstream)
    upstream.script.append(Behaviour(cut_after=7))
    end = run(engine, request(temperature=1.0))["r"]
    assert len(end.token_ids) == 20
    first, second = upstream.bodies
    assert second["prompt"] == [*first["prompt"], *end.token_ids[:7]]
    assert (second["max_tokens"], second["seed"]) == (13, first["seed"] + 7)


def test_a_row_whose_penalties_count_begins_again_and_repeats_itself(
    upstream: Upstream, connect: Connect
) -> None:
    """Its tokens as a prompt would count for nothing."""
    engine = connect(upstream)
    row = request(presence_penalty=0.5, temperature=1.0, logprobs=2)
    upstream.script.append(Behaviour(cut_after=7))
    end = run(engine, row)["r"]
    assert [body["prompt"] for body in upstream.bodies] == [list(row.prompt_token_ids)] * 2
    reference = whole(connect, row)
    assert (end.token_ids, end.logprobs) == (reference.token_ids, reference.logprobs)
    upstream.script += [Behaviour(cut_after=7), Behaviour(other_text=True)]
    assert "another text" in (run(engine, row)["r"].error or "")


def test_text_that_comes_out_otherwise_the_second_time_ends_the_row(connect: Connect) -> None:
    with Upstream(token_ids=False) as upstream:
        engine = connect(upstream)
        upstream.script += [Behaviour(cut_after=7), Behaviour(other_text=True)]
        end = run(engine, request())["r"]
    assert end.reason is FinishReason.ERROR
    assert end.error is not None
    assert "another text" in end.error
    assert end.retryable
    assert len(end.text) == 7


def test_a_server_that_tells_no_token_ids_gives_text_and_usage(connect: Connect) -> None:
    reference = whole(connect, request())
    with Upstream(token_ids=False) as upstream:
        end = run(connect(upstream), request())["r"]
        stopped = run(connect(upstream), request(stop=(reference.text[5],)))["r"]
    assert (end.text, end.token_ids, end.completion_tokens) == (reference.text, (), 20)
    assert end.usage is not None
    assert end.usage.prompt == len(request().prompt_token_ids)
    assert stopped.reason is FinishReason.STOP
    assert stopped.text == reference.text[: reference.text.index(reference.text[5])]


def test_a_row_that_always_fails_ends_alone(upstream: Upstream, connect: Connect) -> None:
    engine = connect(upstream, slots=1)
    upstream.script += [Behaviour(status=500, error="broken")] * MAX_FAILURES
    ends = run(engine, request("bad"))
    assert ends["bad"].reason is FinishReason.ERROR
    assert "500 broken" in (ends["bad"].error or "")
    assert ends["bad"].retryable, "the upstream may have come to itself by then"
    assert run(engine, request("good"))["good"].reason is FinishReason.LENGTH


def test_a_refused_row_ends_alone_with_what_was_said(upstream: Upstream, connect: Connect) -> None:
    engine = connect(upstream, slots=1)
    upstream.script += [Behaviour(status=400, error="too hot"), NORMAL]
    assert engine.admit([request("hot")]) == []
    ends = drain(engine)
    assert "400 too hot" in (ends["hot"].error or "")
    assert not ends["hot"].retryable, "it will be refused again"
    assert run(engine, request("fine"))["fine"].reason is FinishReason.LENGTH


def test_retry_after_is_honoured_by_all_rows(upstream: Upstream, connect: Connect) -> None:
    engine = connect(upstream)
    upstream.script.append(Behaviour(status=429, headers={"Retry-After": "0.5"}))
    assert engine.admit([request("a")]) == []
    drain(engine, until=lambda: bool(engine.capacity().free_slots == 0))
    turned_away_s = time.monotonic()
    assert engine.admit([request("b")]) == []
    drain(engine, until=lambda: len(upstream.bodies) > 1)
    assert time.monotonic() - turned_away_s > 0.4
    assert {end.reason for end in drain(engine).values()} == {FinishReason.LENGTH}


def test_many_more_rows_than_the_upstream_takes(connect: Connect) -> None:
    """Turned away again and again, they all end, and the limit stays near what is taken."""
    with Upstream(max_open=4, token_delay_s=0.001) as upstream:
        engine = connect(upstream, slots=32)
        assert engine.capacity().free_slots == 32
        ends = run(engine, *(request(f"r{i}") for i in range(32)))
        assert {end.reason for end in ends.values()} == {FinishReason.LENGTH}
        assert upstream.most_open == 4
        assert 1 <= engine.capacity().free_slots <= 16
        refused = len(upstream.bodies) - 32
        assert refused < 3 * 32


def test_a_stream_that_hangs_is_given_up_and_goes_on(upstream: Upstream, connect: Connect) -> None:
    engine = connect(upstream, timeout_s=0.3)
    upstream.script.append(Behaviour(hang_after=5))
    end = run(engine, request())["r"]
    assert end.text == whole(connect, request()).text
    assert engine.capacity().free_slots < 8, "silence counts as too much load"


def test_cancelling_closes_the_stream(connect: Connect) -> None:
    with Upstream(token_delay_s=0.01) as upstream:
        engine = connect(upstream)
        assert engine.admit([request(max_tokens=2000)]) == []
        drain(engine, until=lambda: upstream.num_open == 1)
        engine.cancel(["r"])
        [end] = engine.step()[-1:]
        assert isinstance(end, Finished)
        assert end.reason is FinishReason.CANCELLED
        wait_until(lambda: upstream.num_hung_up == 1 and not upstream.num_open)


def test_a_stop_string_that_is_found_here_closes_the_stream(connect: Connect) -> None:
    stop = whole(connect, request(max_tokens=40)).text[10:13]
    with Upstream(token_delay_s=0.005) as upstream:
        end = run(connect(upstream), request(max_tokens=2000, stop=(stop,)))["r"]
        assert end.reason is FinishReason.STOP
        wait_until(lambda: upstream.num_hung_up == 1)


def test_an_upstream_that_goes_and_comes_back_loses_nothing(connect: Connect) -> None:
    with Upstream(token_delay_s=0.005) as upstream:
        engine = connect(upstream)
        rows = [request(f"r{i}", max_tokens=60) for i in range(4)]
        assert engine.admit(rows) == []
        texts: dict[str, str] = {}
        ends = drain(engine, lambda: upstream.num_open == 4, texts)
        upstream.stop()
        away_s = time.monotonic()
        ends |= drain(engine, lambda: time.monotonic() - away_s > 0.5, texts)
        assert ends == {}
        upstream.start()
        ends = drain(engine, texts=texts)
        assert {len(end.token_ids) for end in ends.values()} == {60}
    reference = whole(connect, rows[0])
    assert ends["r0"].token_ids == reference.token_ids


def test_an_upstream_that_is_not_there_yet_is_waited_for(connect: Connect) -> None:
    with Upstream() as upstream:
        upstream.stop()
        with pytest.raises(EngineNotReadyError, match="remote_url"):
            connect(upstream)
        upstream.start()
        upstream.script.append(Behaviour(status=503))
        with pytest.raises(EngineNotReadyError, match="503"):
            connect(upstream)
        connect(upstream)


def test_what_is_configured_wrongly_is_named_and_the_key_is_not(connect: Connect) -> None:
    with Upstream(api_key="sesame") as upstream:
        for wrong, setting in (
            ({}, "remote_api_key"),
            ({"api_key": "secret-one"}, "remote_api_key"),
            ({"api_key": "sesame", "model": "huge"}, "remote_model.*tiny"),
        ):
            with pytest.raises(ModelLoadError, match=setting) as caught:
                connect(upstream, **wrong)
            assert "secret-one" not in str(caught.value)
        assert "sesame" not in repr(RemoteConfig(upstream.url, api_key="sesame"))
        connect(upstream, api_key="sesame", model="tiny")
        upstream.script.append(Behaviour(status=400, error="prompt must be a string"))
        with pytest.raises(ModelLoadError, match="remote_route=chat"):
            connect(upstream, api_key="sesame")
        with pytest.raises(ModelLoadError, match="remote_url"):
            connect(_Elsewhere(upstream.url.replace("/v1", "/v2")), api_key="sesame", model="m")


class _Elsewhere(Upstream):
    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    @property
    def url(self) -> str:
        return self._url


def test_a_key_that_is_revoked_while_it_runs_breaks_the_engine(
    upstream: Upstream, connect: Connect
) -> None:
    engine = connect(upstream)
    upstream.script.append(Behaviour(status=403))
    engine.admit([request()])
    with pytest.raises(MisconfiguredError, match="remote_api_key"):
        drain(engine)


def test_a_chat_upstream_takes_conversations_only(upstream: Upstream, connect: Connect) -> None:
    engine = connect(upstream, route="chat")
    raw = GenerationRequest("raw", [1, 2], Sampling(max_tokens=2, seed=1))
    [rejection] = engine.admit([raw, request()])
    assert (rejection.id, rejection.code) == ("raw", RejectionCode.INVALID)
    [rejection] = engine.admit([request("told", logprobs=2)])
    assert rejection.message.startswith("logprobs")
    assert drain(engine)["r"].reason is FinishReason.LENGTH
    assert upstream.bodies[0]["messages"] == [{"role": "user", "content": "prompt of r"}]


def constrained(fields: dict[str, Any], **sampling: Any) -> GenerationRequest:
    constraint = JobRequest.model_validate({"prompt": "x", **fields}).constraint
    assert constraint is not None
    grammar = GrammarCompiler(TOKENIZER).compile(constraint)
    return replace(request(**sampling), grammar=grammar)


SCHEMA = {"name": "schema", "schema": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"response_format": {"type": "json_object"}}, None),
        ({"response_format": {"type": "json_schema", "json_schema": SCHEMA}}, None),
        ({"guided_choice": ["a", "b"]}, {"structured_outputs": {"choice": ["a", "b"]}}),
        ({"guided_regex": "[a-z]*"}, {"structured_outputs": {"regex": "[a-z]*"}}),
        ({"guided_grammar": 'start: "a"'}, {"structured_outputs": {"grammar": 'start: "a"'}}),
    ],
)
def test_a_constraint_is_passed_on_in_the_upstreams_words(
    upstream: Upstream, connect: Connect, fields: dict[str, Any], sent: dict[str, Any] | None
) -> None:
    run(connect(upstream), constrained(fields))
    [body] = upstream.bodies
    assert {name: body[name] for name in (sent or fields)} == (sent or fields)


def test_a_constraint_begins_again_after_a_cut(upstream: Upstream, connect: Connect) -> None:
    """The upstream's grammar would begin at the wrong place behind tokens that are there."""
    engine = connect(upstream)
    upstream.script += [Behaviour(cut_after=7)]
    end = run(engine, constrained({"guided_regex": ".*"}))["r"]
    assert end.reason is FinishReason.LENGTH
    assert upstream.bodies[0]["prompt"] == upstream.bodies[1]["prompt"]


@pytest.mark.parametrize("token_ids", [True, False])
def test_an_upstream_that_ignores_a_constraint_is_found_out(
    connect: Connect, token_ids: bool
) -> None:
    """Its text ends by itself, and is no JSON; one that is cut at max_tokens might have become some."""
    fields = {"response_format": {"type": "json_object"}}
    with Upstream(token_ids=token_ids) as upstream:
        engine = connect(upstream)
        wrong = run(engine, constrained(fields, ignore_eos=False, max_tokens=500))["r"]
        cut = run(engine, constrained(fields))["r"]
    assert (wrong.reason, wrong.retryable) == (FinishReason.ERROR, False)
    assert wrong.error is not None
    assert wrong.error.startswith("response_format: the upstream's text does not follow it")
    assert cut.reason is FinishReason.LENGTH


def test_an_upstream_without_token_ids_is_given_openais_constraints_only(connect: Connect) -> None:
    with Upstream(token_ids=False) as upstream:
        [rejection] = connect(upstream).admit([constrained({"guided_regex": "a"})])
    assert rejection.code is RejectionCode.INVALID
    assert rejection.message.startswith("guided_regex")


def test_the_reasoning_of_an_upstream_is_split_here_or_there(connect: Connect) -> None:
    """vLLM tells it apart if it is configured to; a text with the markers in it gives the same."""

    def row(*deltas: dict[str, str]) -> Finished:
        with Upstream(token_ids=False) as upstream:
            engine = connect(upstream, route="chat")
            upstream.script += [Behaviour(deltas=deltas)]
            return run(engine, replace(request(), thinking=THINK))["r"]

    marked = row({"content": "<think>\nhm"}, {"content": ", so</th"}, {"content": "ink>\n4."})
    apart = row(
        {"reasoning_content": "hm"}, {"reasoning": ", so"}, {"content": "4"}, {"content": "."}
    )
    for end in (marked, apart):
        assert (end.reasoning, end.text, end.reason) == ("hm, so", "4.", FinishReason.STOP)


def test_an_upstreams_reasoning_cannot_be_ended(upstream: Upstream, connect: Connect) -> None:
    [rejection] = connect(upstream).admit([request(max_reasoning_tokens=5)])
    assert rejection.message.startswith("max_reasoning_tokens")


def test_an_adapter_is_a_model_of_the_upstreams(upstream: Upstream) -> None:
    preset = Preset(name="tiny", source="", context_tokens=4096)
    config = EngineConfig("remote", None, preset, slots=1, adapters={"sql": "tiny-sql"})
    engine = RemoteEngine.connect(config, TOKENIZER, RemoteConfig(upstream.url))
    run(engine, replace(request("a"), adapter="sql"))
    run(engine, request("b"))
    engine.close()
    assert [body["model"] for body in upstream.bodies] == ["tiny", "tiny-sql", "tiny"]
    wrong = replace(config, adapters={"sql": "other"})
    with pytest.raises(ModelLoadError, match="adapters: the upstream serves no other"):
        RemoteEngine.connect(wrong, TOKENIZER, RemoteConfig(upstream.url))


def test_the_remote_worker_loads_no_torch() -> None:
    program = (
        "import sys, worker.__main__, worker.weights, worker.engines.remote.engine; "
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
