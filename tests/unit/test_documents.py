"""The documents say what the code does, where that can be checked."""

import re
from pathlib import Path

import millpond
from millpond import __all__ as public_names
from millpond.keys import QUEUE_KEYS
from millpond.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", section(README, "Settings"), re.MULTILINE)
    shown: dict[str, str] = {}
    for names, defaults in rows:
        for name, default in zip(names.split(", "), defaults.split(", "), strict=True):
            shown[name.strip("` ")] = default.strip("` ")
    assert set(shown) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, int | float | str) and not isinstance(field.default, bool):
            assert (
                shown[name] == f"{field.default:g}"
                if isinstance(field.default, float)
                else str(field.default)
            ), name


def test_every_file_in_the_tree_exists() -> None:
    tree = section(README, "The tree").split("```")[1]
    folder = ROOT
    for line in tree.strip().splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = ROOT / name
            assert folder.exists(), name
            continue
        assert list(folder.glob(name)), line


def test_every_key_is_in_the_protocol() -> None:
    names = section(PROTOCOL, "Names")
    for suffix in QUEUE_KEYS.values():
        assert f"mp:{{Q}}:{suffix}" in names, suffix


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_tests_that_the_reliability_table_names_exist() -> None:
    """A row names its file, and the functions after it."""
    table = (ROOT / "docs" / "reliability.md").read_text()
    text = ""
    for file, function in re.findall(r"`(tests/[a-z_/]+\.py)`|`(test_[a-z_]+)`", table):
        if file:
            text = (ROOT / file).read_text()
        else:
            assert f"def {function}(" in text, function


def test_the_public_surface_is_complete() -> None:
    assert list(public_names) == sorted(public_names, key=lambda n: (n.startswith("_"), n))
    for name in public_names:
        assert getattr(millpond, name) is not None
