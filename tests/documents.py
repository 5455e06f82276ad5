"""What the documents say about the code, checked: each check yields what it finds wrong.

A check gets the texts and never reads a document by itself, so `tests/unit/test_documents.py` can
plant a fault in each text and see it found.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import typer.main

from api.requests.bodies import MAX_BULK_JOBS
from millpond.cli import app
from millpond.messages import (
    EventType,
    FinishReason,
    JobRequest,
    JobResult,
    JobStatus,
    Receipt,
    constraints,
    requests,
    sampling_params,
)
from millpond.models import limits as model_limits
from millpond.models.presets import PRESETS
from millpond.queue.keys import QUEUE_KEYS
from millpond.settings import DEFAULT_MODEL, Settings

ROOT = Path(__file__).parents[1]
README = "README.md"
PROTOCOL = "docs/protocol.md"
MAKEFILE = "Makefile"
CONTRIBUTING = "CONTRIBUTING.md"

Texts = Mapping[str, str]
Check = Callable[[Texts], Iterator[str]]


def read_texts() -> dict[str, str]:
    """Every document, and the Makefile, by its path below the root."""
    pages = [ROOT / MAKEFILE, *ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
    return {path.relative_to(ROOT).as_posix(): path.read_text() for path in pages}


def settings_table(texts: Texts) -> Iterator[str]:
    shown: dict[str, str] = {}
    for names, defaults, *_ in _table(_section(texts[README], "Settings"), "setting"):
        for name, default in zip(names.split(", "), defaults.split(", "), strict=True):
            shown[name.strip("`")] = default
    yield from _differences("setting", shown, Settings.model_fields)
    for name in shown.keys() & Settings.model_fields.keys():
        yield from _wrong_default(name, shown[name])


def limits(texts: Texts) -> Iterator[str]:
    section = _section(texts[README], "Sizes and limits")
    rows = {name: text for name, text, *_ in _table(section, "")}
    small, large = PRESETS[DEFAULT_MODEL], PRESETS["vibethinker-1.5b"]
    expected: dict[str, tuple[float, ...]] = {
        "prompt": (
            requests.MAX_PROMPT_CHARS,
            small.max_prompt_tokens,
            large.max_prompt_tokens,
        ),
        "`max_tokens`": (
            *(p.max_output_tokens for p in (small, large)),
            *(p.context_tokens for p in (small, large)),
        ),
        "`stop`": (
            sampling_params.MAX_STOP_STRINGS,
            sampling_params.MAX_STOP_CHARS,
            sampling_params.MAX_STOP_TOKEN_IDS,
        ),
        "`n`": (sampling_params.MAX_CHOICES,),
        "`logit_bias`": (sampling_params.MAX_LOGIT_BIASES,),
        "`logprobs`": (sampling_params.MAX_LOGPROBS, model_limits.MAX_LOGPROB_ENTRIES),
        "`response_format`, `guided_*`": (
            constraints.MAX_CONSTRAINT_BYTES,
            constraints.MAX_CHOICE_TEXTS,
        ),
        "`metadata`": (requests.MAX_METADATA_ITEMS, requests.MAX_METADATA_VALUE_CHARS),
        "bulk submit": (MAX_BULK_JOBS,),
        "`deadline_s`": (requests.MAX_DEADLINE_S / 86_400,),
    }
    for name, numbers in expected.items():
        found = re.findall(r"\d[\d,]*", rows.get(name, ""))
        for number in numbers:
            if f"{number:,.0f}" not in found:
                yield f"the limit of {name} does not say {number:,.0f}"


def tree(texts: Texts) -> Iterator[str]:
    """Each file that it names exists, and each document is named."""
    shown = _section(texts[README], "The tree").split("```")[1].strip()
    folders = [ROOT]
    for line in shown.splitlines():
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        folders[depth + 1 :] = [folders[depth] / name]
        if not folders[-1].exists():
            yield f"the tree names {name}, which does not exist"
    for page in texts:
        path = PurePosixPath(page)
        if path.parts[0] == "docs" and len(path.parts) == 2 and path.stem not in shown:
            yield f"the tree does not name {page}"


def commands(texts: Texts) -> Iterator[str]:
    """The table of commands is the command line's own list, and shows no option that is not there."""
    known_commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    named = set()
    for cell, *_ in _table(_section(texts[README], "The command"), ""):
        words = re.findall(r"[^\s`,]+", cell)
        if not words or words[0] != "millpond":
            yield f"{cell} is no millpond command"
            continue
        named |= {w for w in words if w in known_commands}
        if words[1] not in known_commands:
            yield f"there is no command millpond {words[1]}"
            continue
        known = set(_options(known_commands[words[1]]))
        yield from (f"{cell}: no option {w}" for w in words if w[0] == "-" and w not in known)
    yield from _differences("command", named, known_commands)


def make_targets(texts: Texts) -> Iterator[str]:
    """`make help` lists what is declared, and the documents name no target that is not there."""
    listed = set(re.findall(r"^([a-z-]+):.*## \S", texts[MAKEFILE], re.MULTILINE))
    phony = texts[MAKEFILE].split(".PHONY:")[1].split("\n\n")[0].replace("\\", " ").split()
    yield from _differences("make target", listed, phony)
    for page, text in texts.items():
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
            if target not in listed:
                yield f"{page}: make {target} is no target"


def protocol_keys(texts: Texts) -> Iterator[str]:
    names = [row[0] for row in _table(_section(texts[PROTOCOL], "Names"), "name")]
    # As it is spelled there: a prefix goes on in capitals.
    shown = {re.sub(r"[A-Z_:/]+$", "", name.strip("`").removeprefix("mp:{Q}:")) for name in names}
    yield from _differences("key", shown, {suffix.rstrip(":") for suffix in QUEUE_KEYS.values()})


def protocol_fields(texts: Texts) -> Iterator[str]:
    text = texts[PROTOCOL]
    asked = _names(_table(_section(text, "Request body"), "field"))
    yield from _differences("request field", asked, JobRequest.model_fields)
    events = _names(_table(_section(text, "Following a job"), "type"))
    yield from _differences("event", events, set(EventType))
    result = _section(text, "Result")
    example = result.split("```")[1]
    receipt = set(re.findall(r'"(\w+)":', example.split('"receipt"')[1]))
    optional = {name for name, field in Receipt.model_fields.items() if not field.is_required()}
    yield from _differences("receipt field", receipt | optional, Receipt.model_fields)
    table = _table(result, "field")
    # The example shows these two.
    told = _names(table) | {"id", "usage"}
    yield from _differences("result field", told, JobResult.model_fields)
    rows = {row[0]: set(re.findall(r"`(\w+)`", row[1])) for row in table}
    ended = {status.value for status in JobStatus if status.terminal}
    yield from _differences("final status", rows.get("`status`", ()), ended)
    yield from _differences("finish reason", rows.get("`finish_reason`", ()), set(FinishReason))


def links(texts: Texts) -> Iterator[str]:
    for page, text in texts.items():
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", text):
            if "://" in target:
                continue
            path = (ROOT / page).parent / target if target else ROOT / page
            if not path.exists():
                yield f"{page}: {target} does not exist"
            elif anchor and anchor not in _anchors(path.read_text()):
                yield f"{page}: {target} has no heading #{anchor}"


def reliability_tests(texts: Texts) -> Iterator[str]:
    """A row names its file, and the functions after it."""
    text = ""
    pattern = r"`(tests/[a-z_/]+\.py)`|`(test_[a-z_]+)`"
    for file, function in re.findall(pattern, texts["docs/reliability.md"]):
        if file:
            text = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
        if file and not text:
            yield f"{file} does not exist"
        elif function and f"def {function}(" not in text:
            yield f"{function} does not exist"


def decisions(texts: Texts) -> Iterator[str]:
    """Each has a number of its own, the same in its name and in its heading."""
    seen: dict[str, str] = {}
    for page, text in texts.items():
        if found := re.fullmatch(r"docs/decisions/0*(\d+)-.+\.md", page):
            number = found[1]
            if number in seen:
                yield f"{page} has the number of {seen[number]}"
            seen[number] = page
            if not text.startswith(f"# {number}. "):
                yield f"{page}: the heading does not begin with its number"


CHECKS: tuple[Check, ...] = (
    settings_table,
    limits,
    tree,
    commands,
    make_targets,
    protocol_keys,
    protocol_fields,
    links,
    reliability_tests,
    decisions,
)


def _wrong_default(name: str, shown: str) -> Iterator[str]:
    """A value stands in the table as it would be given; None is told in words."""
    field = Settings.model_fields[name]
    default = field.get_default(call_default_factory=True)
    if name == "model":
        default = DEFAULT_MODEL
    if default in (None, ()):
        if "`" in shown or re.search(r"\d", shown):
            yield f"{name} has no default, the README says {shown}"
        return
    text = f"{default:g}" if isinstance(default, float) else str(default)
    text = text.lower() if isinstance(default, bool) else text.replace(str(Path.home()), "~")
    if shown.strip("`") != text:
        yield f"the default of {name} is {text}, the README says {shown}"


def _section(text: str, title: str) -> str:
    """From that heading to the next one, of any level."""
    [_, after] = re.split(rf"^##+ {re.escape(title)}\n", text, flags=re.MULTILINE)
    return re.split(r"^##+ ", after, flags=re.MULTILINE)[0]


def _table(text: str, first_heading: str) -> list[list[str]]:
    """The cells of the tables whose first column has this heading."""
    rows: list[list[str]] = []
    wanted = False
    lines = [*text.splitlines(), ""]
    for line, following in itertools.pairwise(lines):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if following.startswith("|---"):
            wanted = line.startswith("|") and cells[0] == first_heading
        elif wanted and cells and not line.startswith("|---"):
            rows.append(cells)
    return rows


def _names(rows: Iterable[list[str]]) -> set[str]:
    return {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}


def _options(command: Any) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)


def _anchors(text: str) -> set[str]:
    """As the common hosts of Markdown make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def _differences(what: str, shown: Iterable[str], real: Iterable[str]) -> Iterator[str]:
    shown, real = set(shown), set(real)
    yield from (f"{what} {name} is not described" for name in sorted(real - shown))
    yield from (f"there is no {what} {name}" for name in sorted(shown - real))
