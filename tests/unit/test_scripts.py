"""The Lua files say in their heads what they need; these checks catch a name that is not there."""

import re
from importlib import resources

import pytest

from millpond.queue.keys import QUEUE_KEYS, Keys
from millpond.queue.scripts import load_script

LUA = resources.files("millpond.queue") / "lua"
FILES = {
    file.name.removesuffix(".lua"): file.read_text(encoding="utf-8")
    for file in LUA.iterdir()
    if file.name.endswith(".lua")
}
PRELUDES = {
    "clock",
    "kept",
    "lanes",
    "last_claim",
    "lengths",
    "missing",
    "records",
    "sizes",
    "sweep",
    "trials",
    "stored",
    "waking",
    "webhooks",
}
# Those that a full server, or one that may not be written, lets run.
ONLY_READ = {"inspect", "state", "overview"}
REFUSED_BY_A_FULL_SERVER = {"emit", "endpoint_add", "key_create", "submit", "try_write"}
SCRIPTS = sorted(FILES.keys() - PRELUDES)

DOT = re.compile(r"\bK\.(\w+)")


def header(source: str, field: str) -> list[str]:
    [line] = re.findall(rf"^-- {field}: (.+)$", source, re.MULTILINE) or [""]
    return line.split()


def used_keys(source: str) -> set[str]:
    assert "K[" not in source, "a key by a computed name cannot be checked"
    return set(DOT.findall(source))


def with_preludes(name: str) -> str:
    return "\n".join([*(FILES[p] for p in header(FILES[name], "uses")), FILES[name]])


def test_the_operations_are_these() -> None:
    assert SCRIPTS == [
        "announce",
        "beat",
        "cancel",
        "claim",
        "complete",
        "dead_forget",
        "delivery_settle",
        "delivery_take",
        "emit",
        "endpoint_add",
        "endpoint_remove",
        "fail",
        "inspect",
        "join",
        "key_create",
        "key_revoke",
        "overview",
        "reap",
        "release",
        "renew",
        "spend",
        "state",
        "submit",
        "suspect",
        "try_write",
        "wake",
        "watch",
    ]


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_declared_key_is_known_and_named_once(name: str) -> None:
    declared = header(FILES[name], "keys")
    assert declared
    assert set(declared) <= QUEUE_KEYS.keys()
    assert len(set(declared)) == len(declared)


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_used_key_is_declared(name: str) -> None:
    assert used_keys(with_preludes(name)) <= set(header(FILES[name], "keys"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_key_is_declared_in_vain(name: str) -> None:
    assert set(header(FILES[name], "keys")) <= used_keys(with_preludes(name))


@pytest.mark.parametrize("name", SCRIPTS)
def test_preludes_exist(name: str) -> None:
    assert set(header(FILES[name], "uses")) <= PRELUDES


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_key_is_spelled_in_lua(name: str) -> None:
    assert "mp:" not in FILES[name]
    assert "KEYS" not in FILES[name].replace("KEYS[i]", "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_load_script_puts_the_table_of_keys_before_the_preludes(name: str) -> None:
    script = load_script(name)
    source = script.source.decode()
    assert script.key_names == tuple(header(FILES[name], "keys"))
    assert source.splitlines()[1].startswith(f"local K = {{ {script.key_names[0]} = KEYS[1]")
    assert source.endswith(FILES[name])
    for prelude in header(FILES[name], "uses"):
        assert FILES[prelude] in source
    assert load_script(name) is script


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_documents_its_arguments_and_its_answer(name: str) -> None:
    assert re.search(r"^-- ARGV: ", FILES[name], re.MULTILINE)
    assert re.search(r"^-- -> ", FILES[name], re.MULTILINE)


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_full_server_lets_run(name: str) -> None:
    first_line, *_ = load_script(name).source.decode().splitlines()
    if name in REFUSED_BY_A_FULL_SERVER:
        assert first_line == "#!lua"
    else:
        assert first_line == f"#!lua flags={'no-writes' if name in ONLY_READ else 'allow-oom'}"


def test_the_clock_is_read_in_one_place() -> None:
    assert [name for name, source in FILES.items() if "'TIME'" in source] == ["clock"]


def test_no_script_reads_another_clock() -> None:
    for name, source in FILES.items():
        assert "os.time" not in source, name
        assert "os.clock" not in source, name


def test_keys_of_a_queue_are_distinct() -> None:
    keys = Keys("q")
    assert len({keys[name] for name in QUEUE_KEYS}) == len(QUEUE_KEYS)
