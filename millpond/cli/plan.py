"""``millpond plan``: what a model takes of a device's memory, and what it can serve there."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated

import typer

from millpond.cli.options import DtypeFlag, ModelFlag, SetFlag, parse_assignments
from millpond.models.architecture import Architecture
from millpond.models.config import read_model_config
from millpond.models.memory_plan import (
    COUNTED_SHARE,
    Cell,
    MemoryPlan,
    Verdict,
    parse_bytes,
    plan_memory,
)
from millpond.settings import load_settings

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_LENGTHS = (512, 1024, 2048, 4096, 8192)
_SHORT = {Verdict.FITS: "fits", Verdict.NEAR: "near", Verdict.NOT: "no"}


def plan(
    memory: Annotated[
        str, typer.Option("--memory", help="Of the card, with its unit: 16GiB, 24GB or 81920MiB.")
    ],
    model: ModelFlag = None,
    dtype: DtypeFlag = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object, sizes in bytes.")] = False,
    set_: SetFlag = None,
) -> None:
    """Tell what fits before anything is loaded, from the model's config alone.

    For a card on which the torch engine runs. With dtype auto a card takes bfloat16 or float16, which
    are the same here.
    """
    settings = load_settings(parse_assignments(set_), model=model, dtype=dtype)
    preset = settings.preset()
    architecture = Architecture.from_config(read_model_config(preset, settings.cache_dir))
    context_tokens = min(preset.context_tokens, architecture.context_tokens)
    made = plan_memory(
        preset.name,
        architecture,
        dtype="bfloat16" if settings.dtype == "auto" else settings.dtype,
        memory_bytes=parse_bytes("--memory", memory),
        slots=settings.slots,
        context_tokens=context_tokens,
        batches=_BATCHES,
        lengths=[*(n for n in _LENGTHS if n < context_tokens), context_tokens],
    )
    if json_:
        print(json.dumps(dataclasses.asdict(made), indent=2))
    else:
        print("\n".join(_lines(made)))


def _lines(made: MemoryPlan) -> list[str]:
    facts = [
        ("memory", f"{_gib(made.memory_bytes)}, of which {COUNTED_SHARE:.0%} is counted on"),
        ("weights", f"{_gib(made.weights_bytes)}: {made.parameters:,} parameters in {made.dtype}"),
        ("KV cache", f"{made.kv_bytes_per_token / 1024:.1f} KiB a token"),
        ("workspace", f"{_gib(made.workspace_bytes)} at the most, with all slots taken"),
        ("runtime", _gib(made.runtime_bytes)),
        ("engine", _engine(made)),
    ]
    return [
        f"{made.model} in {made.dtype}",
        "",
        *(f"  {name:<10} {value}" for name, value in facts),
        "",
        "Memory in all, in GiB, for a batch of rows of so many tokens, prompt and output:",
        *_table(made.table),
        "",
        f"The same in a program with float32 weights ({_gib(made.naive_weights_bytes)}) and with the",
        "logits of every position of the batch:",
        *_table(made.naive),
        "",
        f"near: near the limit, over {COUNTED_SHARE:.0%} of the memory; no: does not fit",
    ]


def _engine(made: MemoryPlan) -> str:
    if made.engine is None:
        return "cannot run this model here"
    return f"{made.engine.slots} slots, {made.engine.kv_tokens:,} tokens of KV cache in all"


def _table(cells: Sequence[Cell]) -> list[str]:
    lengths = sorted({cell.length for cell in cells})
    rows = {cell.batch: [c for c in cells if c.batch == cell.batch] for cell in cells}
    head = "".join(f"{length:>13,}" for length in lengths)
    return [
        f"  {'batch':>5}{head}",
        *(f"  {batch:>5}{''.join(map(_cell, row))}".rstrip() for batch, row in rows.items()),
    ]


def _cell(cell: Cell) -> str:
    return f"{cell.bytes / 1024**3:>8.1f} {_SHORT[cell.verdict]:<4}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 1024**3:.2f} GiB"
