"""The command line that the vllm engine runs."""

from pathlib import Path

import pytest

from millpond.errors import InvalidRequestError
from millpond.models.presets import PRESETS
from millpond.settings import load_settings
from worker.vllm_server import argv

PRESET = PRESETS["vibethinker-1.5b"]


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_what_is_known_here_is_passed_on() -> None:
    settings = load_settings(
        engine="vllm",
        vllm_command="/opt/vllm/bin/vllm",
        vllm_args="--tensor-parallel-size 2 --chat-template 'a b.jinja' --max-num-seqs 9",
        dtype="bfloat16",
        slots=64,
        memory_share=0.5,
        adapters={"sql": "/lora/sql"},
    )

    arguments = argv(settings, PRESET, Path("/models/m"), 8123)

    assert arguments[:3] == ["/opt/vllm/bin/vllm", "serve", "/models/m"]
    assert (option(arguments, "--host"), option(arguments, "--port")) == ("127.0.0.1", "8123")
    assert option(arguments, "--served-model-name") == "vibethinker-1.5b"
    assert option(arguments, "--dtype") == "bfloat16"
    assert option(arguments, "--max-model-len") == str(PRESET.context_tokens)
    assert option(arguments, "--max-num-seqs") == "64"
    assert option(arguments, "--gpu-memory-utilization") == "0.450"
    assert option(arguments, "--lora-modules") == "sql=/lora/sql"
    given = ["--tensor-parallel-size", "2", "--chat-template", "a b.jinja", "--max-num-seqs", "9"]
    assert arguments[-6:] == given, "the last of an option counts"


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"weights": "int8"}, "--quantization"), ({"vllm_args": "'unclosed"}, "No closing quotation")],
)
def test_what_vllm_would_not_understand_is_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        load_settings(engine="vllm", **settings)
