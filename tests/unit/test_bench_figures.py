"""Figures of a run, what moved between two, and the report's charts."""

import csv
import io
import math
import os
import random
import re
from pathlib import Path

import pytest

from millpond.bench.comparing import Moved, compare
from millpond.bench.figures import figures, group_runs, percentile
from millpond.bench.frontier import most_side_by_side, planned_bytes
from millpond.bench.loads import ClosedLoop
from millpond.bench.memory import forget_peak, peak_bytes
from millpond.bench.records import Answered, LoadRun, Machine, Record, Setup, Target
from millpond.bench.report.bars import Bars, bars_svg
from millpond.bench.report.charts import Chart, Line, svg, ticks
from millpond.bench.report.files import read_record, write_report
from millpond.bench.report.plots import charts
from millpond.bench.report.text import as_csv
from millpond.bench.timed import Timed
from millpond.errors import InvalidRequestError
from millpond.models.architecture import Architecture
from millpond.models.config import read_model_config
from millpond.models.memory_plan import plan_memory
from millpond.models.presets import PRESETS
from millpond.settings import Settings

LOAD = ClosedLoop(concurrency=4)


def answered(sent_s: float, first_s: float, last_s: float, tokens: int, **more: float) -> Answered:
    return Answered(
        sent_s=sent_s,
        first_s=first_s,
        last_s=last_s,
        prompt_tokens=10,
        output_tokens=tokens,
        **more,  # type: ignore[arg-type]
    )


def run_of(requests: list[Answered], wall_s: float, round: int = 1) -> LoadRun:
    return LoadRun(target="ours", load=LOAD, round=round, wall_s=wall_s, slots=2, requests=requests)


def record_of(*runs: LoadRun) -> Record:
    return Record(
        began_at="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        complete=True,
        machine=Machine(
            system="s",
            processor="<p>",
            cores=2,
            memory_bytes=2**30,
            accelerators=[],
            python="3",
            versions={},
            load_average=0.0,
        ),
        setup=Setup(
            command="millpond bench",
            route="chat",
            stream=True,
            inputs="1",
            outputs="1",
            temperature=0.0,
            ignore_eos=True,
            seed=0,
            requests=1,
            seconds=1.0,
            warmup=0,
            rounds=len(runs),
            limits_ms={},
        ),
        targets=[Target(name="ours", settings={}, worker={})],
        runs=list(runs),
        frontier=[],
    )


def simulated(seed: int, *, pace: float = 1.0, rounds: int = 1, clients: int = 4) -> Record:
    """Clients whose requests take about a second, in a world that drifts a little from second to second."""
    runs = []
    for round in range(rounds):
        chance = random.Random(f"{seed} {round}")
        drift = [chance.gauss(1.0, 0.05) for _ in range(200)]
        requests = []
        for _ in range(clients):
            now_s = 0.0
            while now_s < 30:
                slow = pace * drift[int(now_s)]
                first_s = now_s + slow * chance.uniform(0.1, 0.2)
                last_s = first_s + slow * chance.uniform(0.7, 0.9)
                requests.append(answered(now_s, first_s, last_s, 64))
                now_s = last_s
        runs.append(run_of(requests, max(r.last_s or 0 for r in requests), round))
    return record_of(*runs)


def test_percentiles_are_interpolated() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.5
    assert percentile([1.0, 2.0, 3.0, 4.0], 99) == pytest.approx(3.97)
    assert percentile([5.0], 90) == 5.0


def test_figures_of_a_load() -> None:
    requests = [
        answered(0.0, 0.1, 1.1, 11, queue_wait_ms=50, decoding_ms=1000, batch_rows=2),
        answered(0.0, 0.3, 2.3, 21, queue_wait_ms=400, decoding_ms=2000, batch_rows=1),
        answered(1.0, 1.2, 1.2, 1, queue_wait_ms=700, decoding_ms=0, batch_rows=1),
        Answered(sent_s=1.0, error="503: no"),
    ]
    found = figures([run_of(requests, 4.0)], {"ttft": 250.0, "e2e": 2000.0})
    assert (found.requests, found.failed) == (4, 1)
    assert found.requests_per_s == 0.75
    assert found.output_tokens_per_s == 33 / 4
    assert found.total_tokens_per_s == 63 / 4
    assert found.goodput_per_s == 0.5  # the second was late twice
    assert found.slot_use == 3 / (2 * 4)
    assert found.latency_ms("ttft", 50) == pytest.approx(200)
    assert found.latency_ms("tpot", 99) == pytest.approx(100)  # of the two with more than one token
    assert found.latency_ms("e2e", 50) == pytest.approx(1100)
    assert found.waits_within == {300: 1 / 3, 600: 2 / 3, 800: 1.0}


def test_a_server_without_receipts_has_no_waits() -> None:
    found = figures([run_of([answered(0.0, 0.1, 1.1, 11)], 4.0)], {})
    assert found.waits_within == {}
    assert (found.slot_use, found.batch_rows, found.goodput_per_s) == (None, None, None)
    [line] = csv.DictReader(io.StringIO(as_csv([found])))
    assert (line["slot_use"], line["ttft_p50_ms"]) == ("", "100.0")


def verdicts(moved: list[Moved]) -> dict[str, str]:
    return {one.metric: one.verdict for one in moved}


def test_a_slower_run_is_found_worse_in_everything() -> None:
    found = verdicts(compare(simulated(1), simulated(2, pace=1.15)))
    assert found == dict.fromkeys(found, "worse")
    back = verdicts(compare(simulated(2, pace=1.15), simulated(1)))
    assert back == dict.fromkeys(found, "better")


def test_runs_of_the_same_are_rarely_told_apart() -> None:
    pairs = [compare(simulated(seed), simulated(seed + 1000)) for seed in range(12)]
    told = [one for moved in pairs for one in moved if one.verdict != "noise"]
    assert len(told) <= 0.1 * sum(map(len, pairs)), [one.metric for one in told]


def test_what_two_runs_do_not_share_is_not_compared() -> None:
    other = simulated(1)
    loads = [run.model_copy(update={"load": ClosedLoop(concurrency=5)}) for run in other.runs]
    assert compare(simulated(1), other.model_copy(update={"runs": loads})) == []
    # One target each: they are compared, whatever they are called.
    renamed = [run.model_copy(update={"target": "x"}) for run in other.runs]
    targets = [Target(name="x", settings={}, worker={})]
    update = {"runs": renamed, "targets": targets}
    assert {one.ratio for one in compare(simulated(1), other.model_copy(update=update))} == {1.0}


@pytest.mark.parametrize(
    ("most", "top"), [(0, 1), (1, 1), (391, 400), (3.9, 4), (0.07, 0.08), (265, 300), (5001, 6000)]
)
def test_axes_end_at_round_numbers(most: float, top: float) -> None:
    assert ticks(most)[-1] == pytest.approx(top)
    assert math.isclose(ticks(top)[-1], top)


def test_a_chart_draws_its_points_inside_and_escapes_names() -> None:
    line = Line("<b>", [(1, 10), (4, 40)], colour=0)
    drawn = svg(Chart("p", "t", "x", "y", [line], log_x=True, steps=(1, 4)))
    assert "<b>" not in drawn
    assert "M58.0 183.5L456.0 14.0" in drawn
    assert svg(Chart("p", "t", "x", "y", [Line("none", [], 0)])) == ""


def test_targets_under_one_load_are_bars_as_long_as_their_figures() -> None:
    drawn = bars_svg(Bars("p", "t", "y", [("slots=<1>", 50.0), ("slots=8", 200.0)]))
    assert "slots=&lt;1&gt;" in drawn
    assert re.findall(r'width="([\d.]+)"', drawn) == ["102.5", "410.0"]
    one, other = simulated(1), simulated(2)
    both = [*one.runs, *(run.model_copy(update={"target": "other"}) for run in other.runs)]
    found = [figures(runs, {}) for runs in group_runs(both)]
    first = charts(found, both)[0]
    assert isinstance(first, Bars)
    assert [name for name, _ in first.values] == ["ours", "other"]


def test_a_report_is_written_and_read_back(tmp_path: Path) -> None:
    record = simulated(1, rounds=2)
    written = write_report(record, compare(record, record), tmp_path / "new")
    assert [path.name for path in written] == [
        f"report.{end}" for end in ("json", "html", "md", "csv")
    ]
    assert read_record("--compare", written[0]) == record
    page = written[1].read_text()
    assert "&lt;p&gt;" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is loaded from elsewhere
    assert "| ours | 4 at once |" in written[2].read_text()


def test_rows_are_side_by_side_between_their_first_and_last_tokens() -> None:
    spans = [(0.0, 2.0), (1.0, 3.0), (1.5, 1.8), (2.0, 4.0)]
    rows = [Timed(0.0, first_s=first, last_s=last) for first, last in spans]
    assert most_side_by_side([*rows, Timed(0.0, error="no")]) == 3
    assert most_side_by_side([]) == 0


def test_the_peak_of_a_process_is_that_since_it_was_forgotten() -> None:
    held = bytearray(b"x") * (200 * 2**20)
    pid = os.getpid()
    before = peak_bytes(pid)
    assert before is not None
    del held
    forget_peak(pid)
    after = peak_bytes(pid)
    assert after is not None
    assert after < before - 100 * 2**20


def test_a_plan_is_told_for_engines_that_it_speaks_of() -> None:
    model = plan_memory(
        "smollm2-135m",
        Architecture.from_config(read_model_config(PRESETS["smollm2-135m"], Path("cache"))),
        dtype="bfloat16",
        memory_bytes=2**34,
        slots=8,
        context_tokens=8192,
        batches=[8],
        lengths=[512],
    )
    settings = Settings(model="smollm2-135m")
    assert planned_bytes(settings, "bfloat16", 8, 512) == model.table[0].bytes
    assert planned_bytes(settings, None, 8, 512) is None
    assert planned_bytes(Settings(engine="simulated"), "none", 8, 512) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"version": 2}'])
def test_a_file_that_is_no_report_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_bytes(content)
    with pytest.raises(InvalidRequestError, match=r"--compare: .*old.json is no report.json"):
        read_record("--compare", path)
    with pytest.raises(InvalidRequestError, match="cannot be read: No such file"):
        read_record("--compare", tmp_path / "none.json")
