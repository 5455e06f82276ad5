"""``python -m bench.limits``: a decode step of 64 rows beside what the machine could do at most.

Measured in turns in the same run: products a second from registers, bytes a second from memory, and the
step. Each matrix product, and attention, takes at least as long as its arithmetic at that rate, or as what
it reads takes from memory, whichever is longer: one can go on while the other is waited for. But each needs
what the one before has made, so the least time of a step is the sum of these. Everything else in it (norms,
rotation, softmax, the Python around it) has no time in that sum.
"""

import argparse
import ctypes
import operator
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from millpond.models.tokenization import FolderTokenizer, Tokenizer
from millpond.settings import load_settings
from worker.assembly import prepare_folder
from worker.engines.base import EngineConfig, GenerationRequest, Sampling
from worker.engines.model import loading
from worker.engines.model.backend import prefill
from worker.engines.native import compiling, structs
from worker.engines.native.kernels import NativeKernels
from worker.engines.native.library import Library
from worker.engines.native.runner import NativeRunner
from worker.engines.paging.pages import PagedCache
from worker.engines.scheduling.row import Row

SOURCE = Path(__file__).parent / "limits.c"
READ_BYTES = 512 << 20  # more than any cache holds
STEPS = 10  # of a round


@dataclass(frozen=True, slots=True)
class Rates:
    """Of all threads together, by the second. A product is one multiplication and one addition."""

    float_products: float
    byte_products: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a step that waits for the one before: what it multiplies, and what it must read."""

    float_products: int
    byte_products: int
    bytes: int

    def least_s(self, rates: Rates) -> float:
        arithmetic_s = (
            self.float_products / rates.float_products + self.byte_products / rates.byte_products
        )
        return max(arithmetic_s, self.bytes / rates.bytes)


class Machine:
    """Measures rates with the instructions of a kernel set."""

    def __init__(self, library: Library, cache_dir: Path) -> None:
        flags = compiling.compile_flags(library.kernels, float32=library.float32)
        path = cache_dir.expanduser() / "kernels" / f"limits-{library.kernels.name}.so"
        compiling.compile_library(compiling.find_compiler(), flags, path, source=SOURCE)
        self._functions = ctypes.CDLL(str(path))
        operands = (ctypes.c_uint32 * 32).in_dll(self._functions, "operands")
        for i in range(32):
            operands[i] = 0x3F803F80 | random.getrandbits(32) & 0x007F007F  # from 1 to 2
        self._threads = torch.get_num_threads()
        self._memory: npt.NDArray[np.uint8] = np.ones(READ_BYTES, dtype=np.uint8)

    def measure(self) -> Rates:
        call = self._functions
        threads = ctypes.c_int64(self._threads)
        memory = ctypes.c_void_p(self._memory.ctypes.data)
        for count in (call.float_products, call.byte_products):
            count.restype = ctypes.c_int64
        return Rates(
            self._threads * call.float_products() / seconds(lambda: call.run_floats(threads)),
            self._threads * call.byte_products() / seconds(lambda: call.run_bytes(threads)),
            READ_BYTES
            / seconds(lambda: call.run_reading(memory, ctypes.c_int64(READ_BYTES), threads)),
        )


def seconds(run: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    run()
    return time.perf_counter() - started_s


def parts(native: NativeKernels, rows: int, context_tokens: int) -> list[Part]:
    model: structs.Model = native.model.struct
    stored = native.library.stored_bytes

    def product(linear: structs.Linear) -> Part:
        numbers = int(linear.n * linear.k)
        if linear.scale:
            return Part(0, rows * numbers, numbers)
        return Part(rows * numbers, 0, numbers * stored)

    attention = Part(
        2 * rows * context_tokens * model.heads * model.head_dim,
        0,
        2 * rows * context_tokens * model.kv_heads * model.head_dim * stored,
    )
    found = [product(model.head)]
    for i in range(model.layers):
        layer = model.layer[i]
        found += [attention, *map(product, (layer.qkv, layer.out, layer.gate_up, layer.down))]
    return found


def load(args: argparse.Namespace) -> tuple[NativeKernels, Tokenizer, Path]:
    """The kernels with their model, its tokenizer, and the folder of what is compiled."""
    names = ("model", "dtype", "weights", "cpu_isa")
    settings = load_settings(**{name: getattr(args, name) for name in names})
    preset = settings.preset()
    folder = prepare_folder(settings, preset)
    if folder is None:
        raise SystemExit("there is no model")
    tokenizer = FolderTokenizer(folder)
    config = EngineConfig(
        *("transformers", folder, preset, settings.dtype),
        weights=settings.weights,
        cpu_isa=settings.cpu_isa,
        slots=args.rows,
        cache_dir=settings.cache_dir,
    )
    native = loading.load(config, tokenizer).native
    if native is None:
        raise SystemExit("the kernels do not run this model on this machine")
    return native, tokenizer, settings.cache_dir


def prepare(
    native: NativeKernels, tokenizer: Tokenizer, rows: int, context_tokens: int
) -> tuple[NativeRunner, list[Row]]:
    """Rows with random prompts that have been read, so that the next step is one of decoding."""
    rng = random.Random(0)
    prompts = [
        rng.choices(range(native.model.vocab_size), k=context_tokens - 1) for _ in range(rows)
    ]
    requests = [GenerationRequest(f"{i}", p, Sampling(2, seed=0)) for i, p in enumerate(prompts)]
    running = [Row(request, tokenizer) for request in requests]
    pages = PagedCache(native.pool, kv_tokens=rows * (context_tokens + 64), slots=rows)
    pages.allocate(running)
    runner = NativeRunner(native.model, native.library, pages)
    prefill(runner, running)
    for row in running:
        row.append(0)
    pages.make_room()
    return runner, running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--dtype")
    parser.add_argument("--weights", choices=("auto", "int8"), default="auto")
    parser.add_argument("--cpu-isa")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--context-tokens", type=int, default=256, help="of each row")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    native, tokenizer, cache_dir = load(args)
    machine = Machine(native.library, cache_dir)
    runner, rows = prepare(native, tokenizer, args.rows, args.context_tokens)
    needed = parts(native, args.rows, args.context_tokens)
    runner.decode(rows)
    machine.measure()
    table = Table(
        "round", "G products/s, floats", "bytes", "GB/s", "least ms", "step ms", "reached"
    )
    found: list[tuple[float, ...]] = []
    for _ in range(args.rounds):
        before = machine.measure()
        step_s = statistics.median(seconds(lambda: runner.decode(rows)) for _ in range(STEPS))
        rates = [before, machine.measure()]
        least_s = statistics.mean(sum(part.least_s(rate) for part in needed) for rate in rates)
        peak = [
            statistics.mean(of(rate) / 1e9 for rate in rates)
            for of in map(operator.attrgetter, ("float_products", "byte_products", "bytes"))
        ]
        found.append((*peak, 1000 * least_s, 1000 * step_s, least_s / step_s))
    for name, figures in (
        *((f"{i + 1}", figures) for i, figures in enumerate(found)),
        ("median", tuple(statistics.median(column) for column in zip(*found, strict=True))),
    ):
        *absolute, reached = figures
        table.add_row(name, *(f"{value:.1f}" for value in absolute), f"{reached:.1%}")
    print(f"{native.library.kernels.name}, {args.rows} rows of {args.context_tokens} tokens")
    Console().print(table)


if __name__ == "__main__":
    main()
