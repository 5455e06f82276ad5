"""The simulated engine: determinism, costs and faults. What all engines share is in contract/."""

import multiprocessing
import signal
import subprocess
import sys

import pytest

from millpond.messages import FinishReason
from millpond.models.presets import PRESETS
from millpond.models.tokenization import ByteTokenizer
from worker.engines import build_engine
from worker.engines.base import (
    Engine,
    EngineConfig,
    Finished,
    GenerationRequest,
    RejectionCode,
    Sampling,
)
from worker.engines.simulated import SimulatedConfig, SimulatedCosts, SimulatedFaults

TOKENIZER = ByteTokenizer()


def build(
    *,
    slots: int = 8,
    costs: SimulatedCosts | None = None,
    faults: SimulatedFaults | None = None,
    tokens_per_step: int = 1,
    slept: list[float] | None = None,
) -> Engine:
    simulated = SimulatedConfig(
        costs=costs or SimulatedCosts.free(),
        faults=faults or SimulatedFaults(),
        tokens_per_step=tokens_per_step,
        sleep=(slept if slept is not None else []).append,
    )
    config = EngineConfig("simulated", None, PRESETS["simulated"], slots=slots)
    return build_engine(config, TOKENIZER, simulated=simulated)


def request(row_id: str, prompt: str = "", **sampling: object) -> GenerationRequest:
    values = {"max_tokens": 40, "seed": 1, **sampling}
    return GenerationRequest(row_id, TOKENIZER.encode(prompt or row_id), Sampling(**values))  # type: ignore[arg-type]


def run(engine: Engine, *requests: GenerationRequest) -> dict[str, Finished]:
    assert engine.admit(requests) == []
    finished = {}
    while engine.num_rows:
        finished.update({e.id: e for e in engine.step() if isinstance(e, Finished)})
    return finished


def test_text_depends_on_the_prompt_alone_when_greedy() -> None:
    one = run(build(), request("a", "same"))["a"]
    other = run(build(), request("b", "same", seed=2), request("c", "else"))
    assert one.text == other["b"].text != other["c"].text
    assert one.text.isascii()
    assert one.text


def test_text_depends_on_the_seed_when_sampled() -> None:
    rows = run(
        build(),
        request("a", "same", temperature=1.0, seed=1),
        request("b", "same", temperature=1.0, seed=1),
        request("c", "same", temperature=1.0, seed=2),
    )
    assert rows["a"].text == rows["b"].text != rows["c"].text


def test_rows_end_by_the_end_token_or_at_max_tokens() -> None:
    rows = run(build(slots=64), *(request(f"r{i}") for i in range(64)))
    lengths = {len(r.token_ids) for r in rows.values()}
    assert len(lengths) > 10
    assert all(10 <= n <= 40 for n in lengths)
    for row in rows.values():
        ended_itself = row.token_ids[-1] == ByteTokenizer.EOS
        assert row.reason is (FinishReason.STOP if ended_itself else FinishReason.LENGTH)


@pytest.mark.parametrize("tokens_per_step", [1, 7, 1000])
def test_tokens_per_step_changes_the_steps_and_not_the_text(tokens_per_step: int) -> None:
    reference = run(build(), request("a", stop=("e",)), request("b", ignore_eos=True))
    rows = run(
        build(tokens_per_step=tokens_per_step),
        request("a", stop=("e",)),
        request("b", ignore_eos=True),
    )
    for row_id, row in rows.items():
        assert (row.text, row.token_ids) == (reference[row_id].text, reference[row_id].token_ids)
    assert len(rows["b"].token_ids) == 40


def test_each_step_costs_what_the_model_says() -> None:
    slept: list[float] = []
    engine = build(
        costs=SimulatedCosts(prefill_s_per_token=1.0, decode_s_per_step=10.0, decode_s_per_row=0.5),
        slept=slept,
    )
    run(
        engine,
        request("a", "xx", max_tokens=2, ignore_eos=True),
        request("b", "xxxx", max_tokens=3, ignore_eos=True),
    )
    assert slept == [6.0, 11.0, 10.5]  # six prompt tokens; two rows; one row


def test_marked_rows_are_refused_or_end_with_an_error_alone() -> None:
    engine = build(faults=SimulatedFaults(reject_marker="[no]", error_marker="[bad]"))
    rejections = engine.admit([request("a", "x [no]"), request("b", "x [bad]"), request("c", "x")])
    assert [(r.id, r.code) for r in rejections] == [("a", RejectionCode.INVALID)]
    rows = {}
    while engine.num_rows:
        rows.update({e.id: e for e in engine.step() if isinstance(e, Finished)})
    assert rows["b"].reason is FinishReason.ERROR
    assert rows["b"].error
    assert rows["c"].reason is not FinishReason.ERROR
    assert rows["c"].error is None


def test_a_hang_and_a_failing_step() -> None:
    slept: list[float] = []
    faults = SimulatedFaults(hang_marker="[hang]", hang_s=7.0, raise_at_step=2)
    engine = build(faults=faults, slept=slept)
    engine.admit([request("a", "[hang]")])
    engine.step()
    assert slept == [7.0]
    with pytest.raises(RuntimeError, match="step 2"):
        engine.step()


def _run_poison() -> None:
    run(build(faults=SimulatedFaults(kill_marker="[die]")), request("a", "please [die]"))


def test_poison_kills_the_process() -> None:
    process = multiprocessing.get_context("spawn").Process(target=_run_poison)
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL


def test_importing_the_engines_loads_no_torch() -> None:
    code = (
        "import sys, worker.engines; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_row_says_what_stands_between_two_echo_markers() -> None:
    engine = build(faults=SimulatedFaults(echo_marker="@@"))
    ended = run(engine, request("a", "say @@<b>so</b>@@ now"), request("b", "and nothing else"))
    assert ended["a"].text == "<b>so</b>"
    assert ended["b"].text != "<b>so</b>"
