"""What the code must never contain, so that what travels is data and never a program."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("millpond", "api", "worker", "background", "bench")
    for path in (ROOT / folder).rglob("*.py")
]
FORBIDDEN = {
    "pickle": r"^\s*(import|from)\s+(pickle|cPickle|cloudpickle|dill|shelve|marshal)\b",
    "code from a model's folder": r"trust_remote_code\s*=\s*True",
    "evaluation": r"(?<![\w.])(eval|exec)\(",
    "unsafe YAML": r"yaml\.(load|unsafe_load)\(",
    "a pickled tensor file": r"torch\.load\(",
}


@pytest.mark.parametrize("what", sorted(FORBIDDEN))
def test_none_of_it_is_anywhere(what: str) -> None:
    pattern = re.compile(FORBIDDEN[what], re.MULTILINE)
    found = [str(path.relative_to(ROOT)) for path in SOURCES if pattern.search(path.read_text())]
    assert not found


def test_the_sources_were_found() -> None:
    assert len(SOURCES) > 50


def test_chat_templates_are_rendered_in_a_sandbox() -> None:
    source = (ROOT / "millpond" / "models" / "chat_template.py").read_text()
    assert "ImmutableSandboxedEnvironment(" in source
    assert not re.search(r"(?<!Sandboxed)Environment\(", source)
