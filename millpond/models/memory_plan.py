"""How much memory a model needs, and what fits beside it: arithmetic alone.

The engine sizes its cache and its slots with the same functions that `millpond plan` prints.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from millpond.errors import InvalidRequestError
from millpond.models.architecture import Architecture

# Tokens in one forward pass of a prefill; longer prompts are read in chunks.
PREFILL_TOKENS = 2048
# Rows sampled at once: sorting a large vocabulary takes much memory for each row.
DRAW_ROWS = 32
# The share of a device's memory that plans may use. The rest is for fragmentation, the driver and other
# processes; a plan that needs part of it is near the limit.
COUNTED_SHARE = 0.85
# Code, handles and workspaces of torch and its libraries on the device.
RUNTIME_BYTES = 512 * 1024**2

# Tokens in a page of the KV cache on a card: FlashAttention reads no smaller ones.
CARD_PAGE_TOKENS = 256

BYTES_EACH = {"float32": 4, "bfloat16": 2, "float16": 2}
# Peak bytes for each logit while its row is sampled: two sorts, and sums in float64.
_DRAW_BYTES = 84
# Keys and values copied together for each that is there: rows of several lengths are read as one.
_GATHERED_SHARE = 1.5
# The kernels of one captured step, and their arguments.
_GRAPH_BYTES = 8 * 1024**2
_UNITS = {"": 1, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory of one model on one device; all sizes are upper bounds in bytes.

    ``activation_bytes`` is for each number between the layers, by default as much as for each weight;
    ``adapter_bytes`` is what adapters keep of each token beside them. What
    ``gathers`` copies the pages of one layer together to read them. ``graphs`` keep their own memory for
    a step of all slots, beside that of a prefill. By default, a card that has either.
    """

    architecture: Architecture
    bytes_each: int
    page_tokens: int = CARD_PAGE_TOKENS
    activation_bytes: int | None = None
    adapter_bytes: int = 0
    gathers: bool = True
    graphs: bool = True

    @property
    def kv_bytes_per_token(self) -> int:
        return self.architecture.kv_bytes_per_token(self.bytes_each)

    def kv_bytes(self, rows: int, row_tokens: int) -> int:
        """For rows with ``row_tokens`` in total, each with a page that is not full."""
        places = row_tokens + rows * self.page_tokens
        one_layer = self.kv_bytes_per_token // self.architecture.num_layers
        copied = int(one_layer * _GATHERED_SHARE) if self.gathers else 0
        return places * (self.kv_bytes_per_token + copied)

    def workspace_bytes(self, rows: int, longest_tokens: int) -> int:
        """Working memory of a forward pass, logits and sampling included.

        ``rows`` are decoded at once; the longest of them has ``longest_tokens``.
        """
        tokens = max(rows, min(PREFILL_TOKENS, rows * longest_tokens))
        return (
            tokens * self.token_bytes
            + self._attention_bytes(longest_tokens)
            + self._logits_bytes(rows)
            + (self._graphs_bytes(rows) if self.graphs else 0)
        )

    def total_bytes(self, batch: int, length: int) -> int:
        """Memory of a whole process that decodes ``batch`` rows of ``length`` tokens."""
        return (
            RUNTIME_BYTES
            + self.architecture.weights_bytes(self.bytes_each)
            + self.workspace_bytes(batch, length)
            + self.kv_bytes(batch, batch * length)
        )

    @property
    def token_bytes(self) -> int:
        """Activations of one token: the residual stream and a layer's widest intermediate."""
        a, each = self.architecture, self.activation_bytes or self.bytes_each
        attention = 6 * each * (a.num_heads + 2 * a.num_kv_heads) * a.head_dim
        mlp = 4 * each * a.inner_size
        norm_in_float32 = 12 * a.hidden_size
        rotation = 2 * each * a.head_dim
        widest = max(attention, mlp, norm_in_float32)
        return 5 * each * a.hidden_size + widest + rotation + self.adapter_bytes

    def _attention_bytes(self, longest_tokens: int) -> int:
        """For a chunk that is not its row's first: repeated keys and values, and a mask."""
        if longest_tokens <= PREFILL_TOKENS or not self.gathers:
            return 0
        a, each = self.architecture, self.bytes_each
        repeated = 2 * a.num_heads * a.head_dim * each
        mask = PREFILL_TOKENS * (2 + each)
        return longest_tokens * (repeated + mask)

    def _graphs_bytes(self, rows: int) -> int:
        """The pool that all share, their logits, and what CUDA keeps of each."""
        logits = 2 * rows * self.architecture.vocab_size * self.bytes_each
        return rows * self.token_bytes + logits + (rows // 8 + 4) * _GRAPH_BYTES

    def _logits_bytes(self, rows: int) -> int:
        """The model's logits, a float32 copy with penalties, log-probabilities, and sampling."""
        kept = rows * (self.bytes_each + 8)
        drawing = max(min(rows, DRAW_ROWS) * _DRAW_BYTES, rows * (self.bytes_each + 4))
        return self.architecture.vocab_size * (kept + drawing)


@dataclass(frozen=True, slots=True)
class Sizing:
    """How many rows an engine decodes at once, and how many tokens of KV cache they may reserve."""

    slots: int
    kv_tokens: int


def size_engine(
    footprint: Footprint, room_bytes: int, *, slots: int, context_tokens: int
) -> Sizing | None:
    """What fits into ``room_bytes`` beside the weights: as much KV cache as possible, with as many of the
    slots as have at least one block each. None if not even one row of one block fits."""
    while slots >= 1:
        fixed = footprint.workspace_bytes(slots, context_tokens) + footprint.kv_bytes(slots, 0)
        a_thousand = footprint.kv_bytes(0, 1000)
        kv_tokens = max(0, room_bytes - fixed) * 1000 // a_thousand
        if kv_tokens >= slots * footprint.page_tokens:
            return Sizing(slots, min(kv_tokens, slots * context_tokens))
        slots //= 2
    return None


class Verdict(StrEnum):
    FITS = "fits"
    NEAR = "near the limit"
    NOT = "does not fit"


@dataclass(frozen=True, slots=True)
class Cell:
    """``batch`` rows of ``length`` tokens each, prompt and output together."""

    batch: int
    length: int
    bytes: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The output of `millpond plan`. ``engine`` is what the engine would choose, None if it cannot run;
    ``workspace_bytes`` is for all its slots. ``naive`` is the same table for a program with float32
    weights that prefills whole batches at once and keeps the logits of every position."""

    model: str
    parameters: int
    dtype: str
    memory_bytes: int
    weights_bytes: int
    runtime_bytes: int
    kv_bytes_per_token: int
    workspace_bytes: int
    engine: Sizing | None
    table: list[Cell]
    naive_weights_bytes: int
    naive: list[Cell]


def plan_memory(
    model: str,
    architecture: Architecture,
    *,
    dtype: str,
    memory_bytes: int,
    slots: int,
    context_tokens: int,
    batches: Sequence[int],
    lengths: Sequence[int],
) -> MemoryPlan:
    """Raises UnsupportedModelError where the model's parameters cannot be counted."""
    footprint = Footprint(architecture, BYTES_EACH[dtype])
    weights = architecture.weights_bytes(footprint.bytes_each)
    room = int(memory_bytes * COUNTED_SHARE) - weights - RUNTIME_BYTES
    engine = size_engine(footprint, room, slots=slots, context_tokens=context_tokens)

    def cell(batch: int, length: int, needed: int) -> Cell:
        return Cell(batch, length, needed, judge(needed, memory_bytes))

    shapes = [(batch, length) for batch in batches for length in lengths]
    return MemoryPlan(
        model=model,
        parameters=architecture.parameters or 0,
        dtype=dtype,
        memory_bytes=memory_bytes,
        weights_bytes=weights,
        runtime_bytes=RUNTIME_BYTES,
        kv_bytes_per_token=footprint.kv_bytes_per_token,
        workspace_bytes=footprint.workspace_bytes(
            slots if engine is None else engine.slots, context_tokens
        ),
        engine=engine,
        table=[cell(b, n, footprint.total_bytes(b, n)) for b, n in shapes],
        naive_weights_bytes=architecture.weights_bytes(4),
        naive=[cell(b, n, naive_bytes(architecture, b, n)) for b, n in shapes],
    )


def naive_bytes(architecture: Architecture, batch: int, length: int) -> int:
    """Memory of a program with float32 weights that prefills the whole batch in one pass, computes the
    logits of every position and samples from their softmax: logits, scaled logits and probabilities
    are three float32 tensors of batch x length x vocabulary."""
    footprint = Footprint(architecture, 4)
    tokens = batch * length
    return (
        RUNTIME_BYTES
        + architecture.weights_bytes(4)
        + tokens * footprint.kv_bytes_per_token
        + tokens * footprint.token_bytes
        + 3 * 4 * tokens * architecture.vocab_size
    )


def judge(needed_bytes: int, memory_bytes: int) -> Verdict:
    if needed_bytes > memory_bytes:
        return Verdict.NOT
    return Verdict.NEAR if needed_bytes > memory_bytes * COUNTED_SHARE else Verdict.FITS


def parse_bytes(field: str, text: str) -> int:
    """``16GiB``, ``16GB``, ``512MiB``, ``1000B``; never a bare number, which could mean any of them.

    Raises InvalidRequestError naming ``field``.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?)B?|B)\s*", text, re.IGNORECASE)
    if match is None or float(match[1]) <= 0:
        raise InvalidRequestError(field, f"{text!r} is no size such as 16GiB, 16GB or 512MiB")
    unit = (match[2] or "").upper()
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** (_UNITS[unit] if unit else 0))
