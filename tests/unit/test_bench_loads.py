"""Loads, lengths, questions and variants of ``millpond bench``, and what is said about wrong ones."""

import itertools
import json
import math
import random
import statistics
from pathlib import Path

import pytest

from millpond.bench.lengths import parse_lengths
from millpond.bench.loads import OpenLoop
from millpond.bench.variants import parse_varied
from millpond.bench.workloads import Asking, MadeUp, Wording, read_questions
from millpond.cli import main
from millpond.cli.bench_flags import parse_limits, parse_loads, servers
from millpond.errors import InvalidRequestError
from millpond.models.tokenization import ByteTokenizer
from millpond.openai.requests import CHAT, COMPLETIONS

ASKING = Asking(CHAT, 0.0, ignore_eos=True)


def test_fixed_and_log_normal_lengths_are_as_asked() -> None:
    assert parse_lengths("--input-tokens", "128").draw(random.Random(1)) == 128
    lengths = parse_lengths("--input-tokens", "lognormal:200:0.5:900")
    chance = random.Random(1)
    drawn = [lengths.draw(chance) for _ in range(20_000)]
    assert statistics.median(drawn) == pytest.approx(200, rel=0.03)
    logs = statistics.stdev(math.log(tokens) for tokens in drawn)
    assert logs == pytest.approx(0.5, rel=0.03)
    assert max(drawn) == 900
    assert str(lengths) == "lognormal:200:0.5:900"


def test_arrivals_come_at_the_rate_alone_and_in_bursts() -> None:
    for burst in (1, 5):
        arrivals = OpenLoop(rate_per_s=4.0, burst=burst).arrivals_s(random.Random(3))
        times = list(itertools.islice(arrivals, 20_000))
        assert len(times) / times[-1] == pytest.approx(4.0, rel=0.03)
        together = [len(list(group)) for _, group in itertools.groupby(times)]
        assert set(together) == {burst}
        gaps = [b - a for a, b in itertools.pairwise(sorted(set(times)))]
        # Of exponential gaps the deviation is the mean.
        assert statistics.stdev(gaps) == pytest.approx(statistics.fmean(gaps), rel=0.05)


def test_prompts_have_the_length_that_the_server_counts() -> None:
    counts = [(words, 20 + 5 * words - 1) for words in (8, 72)]  # 19 for the template
    wording = Wording.from_counts(counts)
    workload = MadeUp(
        parse_lengths("--input-tokens", "319"),
        parse_lengths("--output-tokens", "7"),
        Asking(COMPLETIONS, 0.5, ignore_eos=False),
        wording,
        seed=1,
    )
    body = workload.question(3).body
    tokens = 20 + len(ByteTokenizer().encode(body["prompt"]))
    assert tokens == pytest.approx(319, abs=3)
    assert body == {"prompt": body["prompt"], "max_tokens": 7, "temperature": 0.5}
    assert workload.question(3) == workload.question(3)
    assert workload.question(3) != workload.question(4)


def test_a_file_of_ones_own_is_sent_as_it_is() -> None:
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "model": "m"}
    lines = [
        json.dumps({"custom_id": "1", "body": chat}),
        "",
        json.dumps({"prompt": "b", "stream": False}),
    ]
    workload = read_questions("--workload", [line.encode() for line in lines])
    first, second = workload.question(0), workload.question(1)
    assert (first.route, first.body) == (CHAT, {"messages": chat["messages"], "max_tokens": 3})
    assert (second.route, second.body) == (COMPLETIONS, {"prompt": "b"})
    assert workload.question(2) == first


def test_every_combination_is_a_variant() -> None:
    assert parse_varied("--vary", ["slots=1,64", "window=at-once,fixed"]) == [
        {"slots": "1", "window": "at-once"},
        {"slots": "1", "window": "fixed"},
        {"slots": "64", "window": "at-once"},
        {"slots": "64", "window": "fixed"},
    ]
    assert parse_varied("--vary", []) == [{}]


def test_servers_have_the_names_that_they_are_given() -> None:
    places = servers(["http://a:1/v1/", "vllm=https://a:1/v1"], None, stream=True)
    assert [(place.name, getattr(place, "url", "")) for place in places] == [
        ("a:1", "http://a:1/v1"),
        ("vllm", "https://a:1/v1"),
    ]


WRONG = [
    (lambda: parse_lengths("--input-tokens", "0"), "--input-tokens: '0' is no number of tokens"),
    (lambda: parse_lengths("--input-tokens", "1000001"), "from 1 to 1,000,000"),
    (lambda: parse_lengths("--x", "lognormal:5"), "not of the form lognormal:MEDIAN:SIGMA:MAX"),
    (lambda: parse_lengths("--x", "lognormal:5:nan:9"), "SIGMA is nan"),
    (lambda: parse_lengths("--x", "lognormal:9:1:5"), "MAX, 5, is less than MEDIAN, 9"),
    (lambda: parse_loads("1,two", None, 1), "--concurrency: '1,two' is no list of numbers"),
    (lambda: parse_loads("4,4", None, 1), "--concurrency: '4,4' has a number twice"),
    (lambda: parse_loads("0", None, 1), "--concurrency: 0: Input should be greater than"),
    (lambda: parse_loads(None, "nan", 1), "--rate or --burst: nan"),
    (lambda: parse_loads(None, "1", 0), "--rate or --burst: 0"),
    (lambda: parse_loads("1", None, 3), "--burst: belongs to --rate"),
    (lambda: parse_limits(["tft=1"]), "--limit: 'tft' is none of ttft, tpot, e2e, wait"),
    (lambda: parse_limits(["ttft=soon"]), "--limit: 'ttft=soon' is not of the form"),
    (
        lambda: servers(["a:1"], None, stream=True),
        "--url: 'a:1' must begin with http:// or https://",
    ),
    (
        lambda: servers(["http://me:x@a"], None, stream=True),
        "--url: must have no user, password or query",
    ),
    (lambda: servers(["http://a"] * 2, None, stream=True), "--url: 'a' is there twice; give names"),
    (lambda: parse_varied("--vary", ["slots"]), "--vary: 'slots' is not of the form"),
    (lambda: parse_varied("--vary", ["a=1,1"]), "--vary: 'a=1,1' has a value twice"),
    (
        lambda: parse_varied("--vary", [f"a{i}=1,2,3" for i in range(4)]),
        "--vary: makes 81 variants; at most 64",
    ),
    (lambda: read_questions("--workload", [b"", b"{"]), "--workload, line 2: is not JSON"),
    (lambda: read_questions("--workload", [b'{"prompt":"a","n":2}']), "line 1: n must be 1"),
    (lambda: read_questions("--workload", [b"[]"]), "line 1: must be a body with either"),
    (lambda: read_questions("--workload", []), "--workload: has no lines"),
]


@pytest.mark.parametrize(("call", "said"), WRONG, ids=[said for _, said in WRONG])
def test_what_is_wrong_is_named(call: object, said: str) -> None:
    assert callable(call)
    with pytest.raises(InvalidRequestError) as caught:
        call()
    assert said in str(caught.value)


MISTAKES = [
    (("--vary", "slots=1,many"), "millpond: slots: "),
    (("--vary", "slotz=1"), "did you mean slots?"),
    (("--vary", "engine=simulated", "--engine", "simulated"), "--vary: engine is given by another"),
    (("--vary", "slots=1", "--url", "http://x"), "--vary: the settings of a running server"),
    (("--url", "http://127.0.0.1:9/v1"), "no OpenAI-compatible server answers there"),
    (("--frontier", "1"), "--frontier: '1' has a number that is not from 2 to 1,000,000"),
    (("--frontier", "64", "--vary", "slots=1"), "--frontier: tries one setting"),
    (("--seconds", "nan"), "--seconds: must be above 0, at most 86,400"),
    (("--route", "audio"), "--route: 'audio' is neither chat nor completions"),
    (("--compare", "none.json"), "--compare: none.json cannot be read: No such file"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_the_command_tells_a_mistake_in_a_line(
    arguments: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["millpond", "bench", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
