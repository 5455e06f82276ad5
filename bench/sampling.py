"""``python -m bench.sampling``: what it costs to draw the next token of 64 rows, in the kernels and in torch.

The logits are random, with a few likely tokens in each row. CPU time is that of all threads.
"""

import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from millpond.models.tokenization import ByteTokenizer
from millpond.settings import load_settings
from worker.engines.base import GenerationRequest, Sampling
from worker.engines.native.library import load_library
from worker.engines.native.sampler import NativeSampler
from worker.engines.sampling.sampling import Sampler, torch_sampler
from worker.engines.scheduling.row import Row

ROWS = 64
ROUNDS = 15
VOCAB_SIZES = (49_152, 152_000)
SETTINGS: tuple[dict[str, float | int], ...] = (
    {"temperature": 0.6, "top_p": 0.95},
    {"temperature": 1.0, "top_k": 20, "top_p": 0.95},
    {"temperature": 1.0},
)


def make_logits(vocab_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, vocab_size, generator=generator) * 3
    logits[:, :20] += 15 + 10 * torch.rand(ROWS, 20, generator=generator)
    return logits


def make_row(seed: int, **sampling: float | int) -> Row:
    values = Sampling(max_tokens=2, seed=seed, **sampling)  # type: ignore[arg-type]
    return Row(GenerationRequest(f"{seed}", [1], values), ByteTokenizer())


def draw_ms(sampler: Sampler, logits: torch.Tensor, rows: list[Row]) -> tuple[float, float]:
    """CPU time and wall time of one draw for all rows."""
    overwritten = logits.clone()
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    sampler(overwritten, range(len(rows)), rows)
    return 1000 * (time.process_time() - cpu_s), 1000 * (time.perf_counter() - wall_s)


def main() -> None:
    samplers: dict[str, Sampler] = {
        "kernels": NativeSampler(load_library(load_settings().cache_dir)),
        "torch": torch_sampler,
    }
    table = Table("vocabulary", "sampling")
    for name in samplers:
        table.add_column(f"{name}, CPU-ms (wall)")
    for vocab_size in VOCAB_SIZES:
        logits = make_logits(vocab_size)
        for sampling in SETTINGS:
            rows = [make_row(seed, **sampling) for seed in range(ROWS)]
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in samplers}
            for _ in range(ROUNDS):
                for name, sampler in samplers.items():
                    times[name].append(draw_ms(sampler, logits, rows))
            cells = [
                f"{statistics.median(cpu for cpu, _ in found):.1f} "
                f"({statistics.median(wall for _, wall in found):.1f})"
                for found in times.values()
            ]
            how = ", ".join(f"{name} {value}" for name, value in sampling.items())
            table.add_row(f"{vocab_size:,}", how, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
