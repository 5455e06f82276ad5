"""The documents say what the code does, where that can be checked, and the checks notice faults."""

import pytest

import millpond
from millpond import __all__ as public_names
from tests.documents import (
    CHECKS,
    CONTRIBUTING,
    MAKEFILE,
    PROTOCOL,
    README,
    Check,
    commands,
    decisions,
    limits,
    links,
    make_targets,
    protocol_fields,
    protocol_keys,
    read_texts,
    reliability_tests,
    settings_table,
    tree,
)

# Each check with a document, a text in it and what takes its place, and what is then found.
FAULTS: list[tuple[Check, str, str, str, str]] = [
    (settings_table, README, "| `slots` | 128 |", "| `slots` | 127 |", "slots"),
    (settings_table, README, "| `lease_s` | 15 |", "| `lease_s` | 15.5 |", "lease_s"),
    (settings_table, README, "| `window` | `at-once` |", "| `window` | `hybrid` |", "window"),
    (settings_table, README, "| `data_dir` | `data` |", "| `data_dir` | `dat` |", "data_dir"),
    (settings_table, README, "| `adapters` | `{}` |", "| `adapters` | `[]` |", "adapters"),
    (settings_table, README, "| `remote_url` | none |", "| `remote_url` | `x` |", "remote_url"),
    (settings_table, README, "| `kv_tokens` | by memory |", "| `kv_tokens` | 9 |", "kv_tokens"),
    (settings_table, README, "| `model` | `smollm2-135m` |", "| `model` | `gpt` |", "model"),
    (settings_table, README, "| `max_depth` |", "| `max_deep` |", "max_deep"),
    (limits, README, "1,000,000 characters", "2,000,000 characters", "prompt"),
    (limits, README, "| `n` | 16 texts", "| `n` | 17 texts", "`n`"),
    (limits, README, "20 alternatives", "21 alternatives", "logprobs"),
    (limits, README, "| 7 days |", "| 8 days |", "deadline_s"),
    (limits, README, "| 1,000 jobs |", "| 100 jobs |", "bulk"),
    (tree, README, "  client.py ", "  clyent.py ", "clyent.py"),
    (tree, README, "\nworker/\n", "\nworkers/\n", "workers/"),
    (tree, README, "glossary", "words", "docs/glossary.md"),
    (commands, README, "`millpond up`", "`millpond upp`", "upp"),
    (commands, README, "[--wait]", "--patient", "--patient"),
    (commands, README, "| `millpond queue [--watch]` |", "| `millpond result` |", "queue"),
    (make_targets, MAKEFILE, "clean: ## remove", "clean: # remove", "clean"),
    (make_targets, README, "make demo ", "make demonstration ", "demonstration"),
    (make_targets, CONTRIBUTING, "make fuzz ", "make fuss ", "fuss"),
    (protocol_keys, PROTOCOL, "| `mp:{Q}:wake` |", "| `mp:{Q}:woke` |", "woke"),
    (protocol_keys, PROTOCOL, "| `mp:{Q}:job:ID` |", "| `mp:{Q}:jobs:ID` |", "jobs"),
    (protocol_fields, PROTOCOL, "| `truncate` | `error`", "| `cut` | `error`", "cut"),
    (protocol_fields, PROTOCOL, "| `finished_ms` |", "| `ended_ms` |", "ended_ms"),
    (protocol_fields, PROTOCOL, '"run_ms": 930.0', '"ran_ms": 930.0', "ran_ms"),
    (protocol_fields, PROTOCOL, "| `reset` |", "| `restart` |", "restart"),
    (protocol_fields, PROTOCOL, "`stop`, `length`, `loop`", "`stop`, `length`", "loop"),
    (links, README, "](docs/remote.md)", "](docs/removed.md)", "removed.md"),
    (links, README, "(#choosing-a-torch-build)", "(#choosing-a-build)", "choosing-a-build"),
    (decisions, "docs/decisions/0012-remote-engine.md", "# 12. ", "# 13. ", "0012-remote-engine"),
    (reliability_tests, "docs/reliability.md", "`tests/chaos/test_api.py`", "`tests/x.py`", "x.py"),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_documents_are_right(check: Check) -> None:
    assert list(check(read_texts())) == []


@pytest.mark.parametrize(
    ("check", "page", "old", "new", "found"),
    FAULTS,
    ids=[f"{fault[0].__name__}-{fault[4]}" for fault in FAULTS],
)
def test_a_fault_is_noticed(check: Check, page: str, old: str, new: str, found: str) -> None:
    texts = read_texts()
    assert old in texts[page], "plant the fault elsewhere"
    texts[page] = texts[page].replace(old, new)
    assert any(found in wrong for wrong in check(texts))


def test_each_check_has_a_planted_fault() -> None:
    assert {fault[0] for fault in FAULTS} == set(CHECKS)


def test_the_public_surface_is_complete() -> None:
    assert list(public_names) == sorted(public_names, key=lambda n: (n.startswith("_"), n))
    for name in public_names:
        assert getattr(millpond, name) is not None
