"""``python -m bench.adapters WORKLOAD``: what LoRA adapters cost, beside the same rows without.

The rows are spread over random adapters of all layers, and take turns with the same rows as the model is
without; the tokens differ, their number does not. ``--torch`` measures the torch path likewise.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from bench.engine import Bench, Measured, median, share
from bench.workload import read_lines
from millpond.settings import Settings, load_settings
from worker.assembly import prepare_folder
from worker.engines.base import GenerationRequest

# The most of each number in A and B, about as after training.
_SPREAD = 0.02


def write_adapters(folder: Path, settings: Settings, count: int, rank: int) -> dict[str, str]:
    """Random adapters of every linear layer but the head, as the library `peft` saves them."""
    config = AutoConfig.from_pretrained(prepare_folder(settings, settings.preset()))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linears = {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear) and path != "lm_head"
    }
    made: dict[str, str] = {}
    for number in range(count):
        draw = torch.Generator().manual_seed(number)
        tensors = {}
        for path, layer in linears.items():
            for half, shape in (
                ("A", (rank, layer.in_features)),
                ("B", (layer.out_features, rank)),
            ):
                numbers = _SPREAD * (2 * torch.rand(shape, generator=draw) - 1)
                tensors[f"base_model.model.{path}.lora_{half}.weight"] = numbers
        place = folder / f"adapter-{number}"
        place.mkdir()
        save_file(tensors, place / "adapter_model.safetensors")
        fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}
        (place / "adapter_config.json").write_text(json.dumps(fields))
        made[place.name] = str(place)
    return made


def spread(
    rows: Sequence[GenerationRequest], adapters: Sequence[str | None]
) -> list[GenerationRequest]:
    """Each row with the next of the adapters, and as many tokens as it may have."""
    return [
        replace(
            row,
            adapter=adapters[i % len(adapters)],
            sampling=replace(row.sampling, ignore_eos=True),
        )
        for i, row in enumerate(rows)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", type=Path, help="OpenAI batch lines (JSONL)")
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--weights", choices=("auto", "int8"), default="auto")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch", action="store_true", help="measure the torch path, too")
    args = parser.parse_args()
    # Each round reads its prompts anew, and drafts nothing from the round before.
    settings = load_settings(
        model=args.model,
        dtype=args.dtype,
        weights=args.weights,
        slots=args.rows,
        prefix_cache_tokens=0,
        speculative_tokens=0,
    )
    lines = read_lines(args.workload, repeat=1)[: args.rows]
    runs: dict[str, list[Measured]] = {}
    with tempfile.TemporaryDirectory() as folder:
        adapters = write_adapters(Path(folder), settings, args.adapters, args.rank)
        chosen = settings.model_copy(update={"adapters": adapters})
        benches = {"kernels": Bench(chosen)}
        if args.torch:
            # There are no kernels of another machine's, so torch computes.
            other = chosen.model_copy(update={"cpu_isa": "neon", "weights": "auto"})
            benches["torch"] = Bench(other)
        for turn in range(args.rounds):
            for name, bench in benches.items():
                rows = bench.rows(lines)
                kinds = {
                    f"{name}, without": spread(rows, [None]),
                    f"{name}, adapters": spread(rows, list(adapters)),
                }
                for kind in sorted(kinds, reverse=bool(turn % 2)):
                    runs.setdefault(kind, []).append(bench.run_alone(kinds[kind]))
    table = Table("rows", "tokens/s", "prefill tokens/s", "decode step ms", "its CPU ms")
    for kind, found in sorted(runs.items()):
        m = median(found)
        figures = (
            m.tokens_per_s,
            m.prefill_tokens_per_s,
            m.decode_step_ms,
            m.decode_step_cpu_ms,
        )
        table.add_row(kind, *("-" if figure is None else f"{figure:.1f}" for figure in figures))
    Console().print(table)
    for name in benches:
        beside = share(runs[f"{name}, adapters"], runs[f"{name}, without"])
        Console().print(f"{name}: {beside:.3f} of the tokens a second without adapters")


if __name__ == "__main__":
    main()
