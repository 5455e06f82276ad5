"""What fits is told from a config alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from millpond.cli import main
from millpond.errors import InvalidRequestError, ModelLoadError, UnsupportedModelError
from millpond.models.architecture import Architecture
from millpond.models.config import read_model_config
from millpond.models.memory_plan import (
    BYTES_EACH,
    COUNTED_SHARE,
    RUNTIME_BYTES,
    Footprint,
    Verdict,
    judge,
    naive_bytes,
    parse_bytes,
    plan_memory,
    size_engine,
)
from millpond.models.presets import PRESETS
from tests.fake_hub import fake_hub, point_at

GIB = 1024**3
CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131_072,
}


def vibethinker() -> Architecture:
    return Architecture.from_config(CONFIG)


def test_the_numbers_of_the_model_it_was_made_for() -> None:
    model = vibethinker()
    assert model.parameters == 1_543_714_304
    assert model.kv_bytes_per_token(2) == 28 * 1024
    assert model.weights_bytes(4) == 4 * 1_543_714_304
    # The arithmetic of the source: 16 x 512 tokens are 0.24 GB.
    assert 16 * 512 * model.kv_bytes_per_token(2) == pytest.approx(0.235e9, rel=0.01)


@pytest.mark.parametrize("memory", ["15GiB", "16GB", "16GiB"])
def test_the_sources_table_and_why_it_is_not_ours(memory: str) -> None:
    """On 16 GB: 4 x 512 stable, 8 x 512 near the limit, 16 x 512 out of memory. Not here."""
    model, size = vibethinker(), parse_bytes("memory", memory)
    judged = [judge(naive_bytes(model, batch, 512), size) for batch in (4, 8, 16)]
    assert judged == [Verdict.FITS, Verdict.NEAR, Verdict.NOT]
    ours = Footprint(model, BYTES_EACH["float16"])
    for batch in (4, 8, 16, 128):
        assert judge(ours.total_bytes(batch, 512), size) is Verdict.FITS
    # What overflowed: weights twice as large, and logits that nobody reads.
    logits = 3 * 4 * 16 * 512 * model.vocab_size
    assert naive_bytes(model, 16, 512) - logits < size


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"simulated"}))
def test_presets_are_planned_without_their_weights(name: str, tmp_path: Path) -> None:
    model = Architecture.from_config(read_model_config(PRESETS[name], tmp_path))
    billions = float(name.rsplit("-", 1)[1].rstrip("bm"))
    assert model.parameters is not None
    assert model.parameters == pytest.approx(
        billions * (1e6 if name.endswith("m") else 1e9), rel=0.04
    )
    assert PRESETS[name].context_tokens <= model.context_tokens


def test_a_models_own_config_goes_before_the_presets(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "vibethinker-1.5b"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 7}))
    assert read_model_config(PRESETS["vibethinker-1.5b"], tmp_path)["vocab_size"] == 7


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"hidden_size": None}, "config.json: hidden_size: is missing"),
        ({"vocab_size": "many"}, "config.json: vocab_size: 'many' is not a positive integer"),
        ({"num_hidden_layers": 0}, "config.json: num_hidden_layers: 0"),
        ({"num_attention_heads": True}, "config.json: num_attention_heads: True"),
        ({"model_type": None}, "config.json: model_type: is missing"),
    ],
)
def test_a_wrong_config_names_the_field(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Architecture.from_config(CONFIG | change)
    assert str(caught.value).startswith(complaint)


def test_what_cannot_be_counted_says_so() -> None:
    unknown = Architecture.from_config(CONFIG | {"model_type": "mamba"})
    with pytest.raises(UnsupportedModelError, match="mamba"):
        unknown.weights_bytes(2)
    with pytest.raises(UnsupportedModelError, match="only decoder-only text models"):
        Architecture.from_config({"model_type": "gemma3", "text_config": {}})
    with pytest.raises(ModelLoadError, match="no weights"):
        read_model_config(PRESETS["simulated"], Path())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("16GiB", 16 * GIB),
        ("16GB", 16_000_000_000),
        ("16g", 16_000_000_000),
        (" 1.5 MiB ", 1_572_864),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes("--memory", text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "16 GiBi", "-1GiB", "0", "16", "123", "16XB", "1e9", "nan"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="--memory"):
        parse_bytes("--memory", text)


def test_the_engine_takes_all_room_and_no_more() -> None:
    footprint = Footprint(vibethinker(), 2)
    for room in (2 * GIB, 5 * GIB, 11 * GIB):
        sizing = size_engine(footprint, room, slots=128, context_tokens=45_056)
        assert sizing is not None
        workspace = footprint.workspace_bytes(sizing.slots, 45_056)
        used = workspace + footprint.kv_bytes(sizing.slots, sizing.kv_tokens)
        assert 0.99 * room < used <= room
    plenty = size_engine(footprint, 10_000 * GIB, slots=4, context_tokens=1000)
    assert plenty is not None
    assert (plenty.slots, plenty.kv_tokens) == (4, 4000)


def test_what_adapters_keep_of_each_token_is_working_memory() -> None:
    architecture = Architecture.from_config(CONFIG)
    without, beside = (Footprint(architecture, 2, adapter_bytes=n) for n in (0, 96))
    tokens = 64 * 20
    more = beside.workspace_bytes(64, 20) - without.workspace_bytes(64, 20)
    assert more >= 96 * tokens
    assert beside.kv_bytes(64, 1000) == without.kv_bytes(64, 1000)


def test_little_room_means_fewer_slots_and_none_at_last() -> None:
    footprint = Footprint(vibethinker(), 2, page_tokens=64, gathers=False, graphs=False)
    slots = []
    for megabytes in range(1300, 0, -10):
        sizing = size_engine(footprint, megabytes * 10**6, slots=128, context_tokens=2048)
        slots.append(sizing.slots if sizing else 0)
    assert slots == sorted(slots, reverse=True)
    assert slots[0] == 128
    assert slots[-1] == 0
    assert {64, 32, 8, 1} <= set(slots)


def test_the_plan_and_the_engine_agree() -> None:
    plan = plan_memory(
        "m",
        vibethinker(),
        dtype="float16",
        memory_bytes=16 * GIB,
        slots=128,
        context_tokens=45_056,
        batches=[16],
        lengths=[512],
    )
    room = int(16 * GIB * COUNTED_SHARE) - plan.weights_bytes - RUNTIME_BYTES
    footprint = Footprint(vibethinker(), 2)
    assert plan.engine == size_engine(footprint, room, slots=128, context_tokens=45_056)
    # Forty thousand tokens for one job, and sixty short ones, at once.
    assert plan.engine is not None
    assert plan.engine.kv_tokens > 45_056 + 60 * 1024


# -- the command


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    monkeypatch.setenv("MILLPOND_CACHE_DIR", str(tmp_path / "cache"))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["millpond", "plan", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run


def test_the_table_that_people_read(run: Run) -> None:
    code, out, _ = run("--model", "vibethinker-1.5b", "--memory", "16GiB", "--dtype", "float16")
    assert code == 0
    assert "2.88 GiB: 1,543,714,304 parameters in float16" in out
    assert "28.0 KiB a token" in out
    ours, naive = out.split("The same in a program")
    assert [line.split()[:3] for line in ours.splitlines() if line.startswith("     16")] == [
        ["16", "4.2", "fits"]
    ]
    verdicts = {line.split()[0]: line.split()[2] for line in naive.splitlines()[3:-2]}
    assert (verdicts["4"], verdicts["8"], verdicts["16"]) == ("fits", "near", "no")


def test_the_readme_shows_what_it_prints(run: Run) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    command, *shown = readme.split("$ millpond plan ")[1].split("```")[0].splitlines()
    _, out, _ = run(*command.split())
    assert len(shown) == 8
    assert set(shown) <= set(out.splitlines())


def test_json(run: Run) -> None:
    code, out, _ = run("--model", "smollm2-135m", "--memory", "2GB", "--json", "--set", "slots=8")
    assert code == 0
    plan = json.loads(out)
    assert plan["parameters"] == 134_515_008
    assert plan["engine"]["slots"] == 8
    assert {"batch", "length", "bytes", "verdict"} == set(plan["table"][0])


def test_a_folder_with_nothing_but_a_config(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"max_position_embeddings": 2000}))
    code, out, _ = run("--model", str(tmp_path), "--memory", "1GiB")
    assert code == 0
    assert "engine     cannot run this model here" in out
    assert "2,000" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--memory", "lots"), "--memory: 'lots'"),
        (("--memory", "1GB", "--dtype", "float12"), "dtype:"),
        (("--memory", "1GB", "--model", "nothing"), "model 'nothing' is not a preset"),
        (("--memory", "1GB", "--model", "simulated"), "no weights"),
    ],
)
def test_wrong_input(run: Run, arguments: tuple[str, ...], complaint: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert complaint in " ".join(err.split())


def test_a_model_of_the_hub(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with fake_hub() as hub:
        monkeypatch.setenv("MILLPOND_CACHE_DIR", str(tmp_path / "cache"))
        point_at(hub.url, monkeypatch)
        hub.models["some/model"] = tmp_path
        code, out, _ = run("--model", "some/model", "--memory", "16GiB")
        assert code == 0
        assert "1,543,714,304" in out
        code, _, err = run("--model", "some/other", "--memory", "16GiB")
    assert code == 2
    assert "the hub has no such model" in " ".join(err.split())
