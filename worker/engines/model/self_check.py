"""Before serving: does this engine's forward pass agree with transformers' own?

The rules in `loading` refuse what is known not to fit. This catches the rest: an architecture whose
attention needs something that was not considered, or a kernel that goes wrong at some length, is refused
here, and never answered wrongly.

All probes but those far behind (`far_probes`) are beginnings of one text, so one forward pass of
transformers' has the logits for all of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from millpond.errors import UnsupportedModelError
from millpond.models.presets import Preset
from millpond.models.prompts import shared_prefix
from millpond.models.tokenization import ByteTokenizer, Tokenizer
from worker.engines.base import GenerationRequest, Sampling
from worker.engines.model.backend import build_backend, prefill
from worker.engines.model.far_probes import OWN_TOKENS, FarText, far_logits, far_places
from worker.engines.model.loading import LoadedModel, original_context
from worker.engines.model.probe_text import probe_tokens, repeated
from worker.engines.native.weights import rotary_tables
from worker.engines.scheduling.row import Row
from worker.engines.torch.attention import ATTENTION_NAME

# Short rows, both sides of a page, several pages, and past the longest chunk of a prefill.
_PROBE_TOKENS = (5, 29, 63, 64, 65, 127, 200, 2100)
# Of each adapter, beside those of the model as it is.
_ADAPTER_PROBE_TOKENS = (5, 65)
# Less than is served with, so that rows of all lengths are cut: in a long one a lost token hardly shows.
_CHUNK_TOKENS = 150
# Where else to look in a long context than at its end; what is read there is cut, too.
_FAR_PLACES = (8000,)
_FAR_CHUNK_TOKENS = 13
# Of the rotary tables are compared at a time.
_TABLE_TOKENS = 4096
_TABLE_DIFFERENCE = 1e-5
_DECODE_STEPS = 4
# More positions to judge a rounded model by.
_ROUNDED_DECODE_STEPS = 16


@dataclass(frozen=True, slots=True)
class Criterion:
    """``agreement`` is the least cosine of the centred logits at any position: a fault shows there.

    ``divergence`` (mean KL divergence of the next token from transformers' own, in nats) and ``same``
    (share of positions with the same likeliest token) are over all positions: rounding shows there.
    """

    agreement: float
    divergence: float = float("inf")
    same: float = 0.0


# Rounding alone leaves about 0.999 in bfloat16.
_CRITERIA = {
    "float32": Criterion(0.9999),
    "int8": Criterion(0.9, divergence=0.1, same=0.8),
}
_ROUNDED = Criterion(0.98, divergence=0.02, same=0.9)


@torch.inference_mode()
def check(loaded: LoadedModel, preset: Preset, tokenizer: Tokenizer, *, long: bool = True) -> None:
    """Compare a prefill of rows of many lengths, and decode steps behind it, with transformers.

    Without ``long``, rows of up to some pages only: that takes a fraction of a second on a CPU.
    Raises UnsupportedModelError when they disagree.
    """
    probes = _Probes(loaded, preset, tokenizer, long=long)
    rows = [*probes.near_rows, *probes.far_rows]
    kv_tokens = sum(row.most_tokens for row in rows)
    cache, runner = build_backend(
        loaded, kv_tokens=kv_tokens, slots=len(rows), prefix=probes.prefix
    )
    runner.warm_up()
    cache.allocate(probes.near_rows)
    output = prefill(runner, probes.near_rows, logits=True, chunk_tokens=_CHUNK_TOKENS)
    probes.compare(probes.near_rows, output.logits, "prefill")
    if probes.far_rows:
        for row in probes.far_rows:
            cache.allocate_behind(probes.longest_row, row)
        output = prefill(runner, probes.far_rows, logits=True, chunk_tokens=_FAR_CHUNK_TOKENS)
        probes.compare(probes.far_rows, output.logits, "prefill")
    for _ in range(probes.decode_steps):
        for row in rows:
            row.append(probes.next_token(row))
        cache.make_room()
        decoded, output = runner.decode(rows, logits=True)
        probes.compare(decoded, output.logits, "decode")
    probes.judge()
    if long:
        probes.compare_rotary_tables()


class _Probes:
    """The rows, what transformers says of them, and how far we are from it."""

    def __init__(
        self,
        loaded: LoadedModel,
        preset: Preset,
        tokenizer: Tokenizer,
        *,
        long: bool,
    ) -> None:
        self._loaded = loaded
        self._name = type(loaded.model).__name__
        self._criterion = _CRITERIA.get(loaded.dtype_name, _ROUNDED)
        self.prefix = shared_prefix(preset, tokenizer)
        self.decode_steps = _DECODE_STEPS
        if loaded.dtype_name == "int8":
            self.decode_steps = _ROUNDED_DECODE_STEPS
        self._context_tokens = min(loaded.context_tokens, preset.context_tokens)
        most = self._context_tokens - self.decode_steps
        probe_lengths = _PROBE_TOKENS if long else _PROBE_TOKENS[:-1]
        lengths = sorted({min(length, most) for length in probe_lengths})
        vocab_size = loaded.model.config.vocab_size
        text = repeated(probe_tokens(tokenizer, vocab_size), lengths[-1] + self.decode_steps)
        text = [*self.prefix, *text][: len(text)]
        probes: dict[str | None, list[int]] = {None: lengths}
        if loaded.adapters is not None:
            of_each = sorted({min(length, most) for length in _ADAPTER_PROBE_TOKENS})
            probes |= dict.fromkeys(loaded.adapters.names, of_each)
        self._texts: dict[str, list[int]] = {}
        self.near_rows: list[Row] = []
        self.far_rows: list[Row] = []
        self._reference: dict[tuple[str | None, int], torch.Tensor] = {}
        for adapter, some in probes.items():
            for n in some:
                self.near_rows.append(self._row(f"probe-{n}-{adapter}", text, n, adapter))
            ends = sorted({n + step for n in some for step in range(self.decode_steps + 1)})
            logits = _reference(loaded, text[: ends[-1]], ends, adapter)
            self._reference |= {(adapter, end): row for end, row in logits.items()}
        if long:
            self._add_far_rows(text)
        self._divergences: list[float] = []
        self._same: list[bool] = []

    def _add_far_rows(self, text: Sequence[int]) -> None:
        own_tokens = OWN_TOKENS + self.decode_steps
        most = self._context_tokens - own_tokens
        if (
            self._loaded.native is None
        ):  # where no kernel reads pages, each pass gathers all of them
            most = min(most, max(_FAR_PLACES))
        original = original_context(self._loaded.model.config)
        page_tokens = self._loaded.layout.page_tokens
        wanted = [*_FAR_PLACES, *([] if original is None else [original])]
        places = far_places(most, wanted, longest=len(text), page_tokens=page_tokens)
        page, own = text[:page_tokens], text[page_tokens : page_tokens + own_tokens]
        texts = [FarText(page, place, own) for place in places]
        if not texts:
            return
        num_tokens = len(page) + len(texts) * len(own)
        with _as_transformers_itself(self._loaded, num_tokens):
            found_logits = far_logits(self._loaded, texts)
        for far, logits in zip(texts, found_logits, strict=True):
            row = self._row(f"far-{far.place}", far.token_ids, far.place + OWN_TOKENS)
            row.read_tokens = far.place
            self.far_rows.append(row)
            for end, found in enumerate(logits, start=far.place + 1):
                self._reference[None, end] = found

    def _row(self, name: str, text: list[int], num_tokens: int, adapter: str | None = None) -> Row:
        self._texts[name] = text
        sampling = Sampling(max_tokens=self.decode_steps + 1, seed=0, ignore_eos=True)
        request = GenerationRequest(name, text[:num_tokens], sampling, adapter=adapter)
        return Row(request, ByteTokenizer())

    @property
    def longest_row(self) -> Row:
        """Of those that are read from their beginning, without an adapter."""
        return max(self.near_rows, key=lambda row: row.num_tokens)

    def next_token(self, row: Row) -> int:
        return self._texts[row.id][row.num_tokens]

    def compare(self, rows: Sequence[Row], logits: torch.Tensor | None, phase: str) -> None:
        """Raises UnsupportedModelError for a position at which they do not agree."""
        assert logits is not None
        theirs = torch.stack(
            [self._reference[row.adapter, row.num_tokens] for row in rows]
        ).double()
        ours = logits.double()
        agreements = torch.nn.functional.cosine_similarity(
            ours - ours.mean(-1, keepdim=True), theirs - theirs.mean(-1, keepdim=True)
        )
        for row, agreement in zip(rows, agreements.tolist(), strict=True):
            if not agreement >= self._criterion.agreement:  # NaN too
                beside = f" of adapter {row.adapter!r}" if row.adapter is not None else ""
                self._refuse(
                    f"in {phase}, after {row.num_tokens} tokens{beside}, this engine's logits agree "
                    f"with transformers' own only to {agreement:.4f}"
                )
        wanted, found = theirs.log_softmax(-1), ours.log_softmax(-1)
        self._divergences += (wanted.exp() * (wanted - found)).sum(-1).tolist()
        self._same += (ours.argmax(-1) == theirs.argmax(-1)).tolist()

    def judge(self) -> None:
        """Raises UnsupportedModelError if too much was lost over all positions."""
        divergence = sum(self._divergences) / len(self._divergences)
        same = sum(self._same) / len(self._same)
        if not (divergence <= self._criterion.divergence and same >= self._criterion.same):
            self._refuse(
                f"as {self._loaded.dtype_name}, its next tokens diverge from transformers' own by "
                f"{divergence:.3f} nats (at most {self._criterion.divergence}), and {same:.0%} of the "
                f"likeliest are the same (at least {self._criterion.same:.0%})"
            )

    def compare_rotary_tables(self) -> None:
        """Raises UnsupportedModelError if the kernels turn a position in another way than the model."""
        native = self._loaded.native
        if native is None:
            return
        for first in range(0, self._context_tokens, _TABLE_TOKENS):
            places = range(first, min(first + _TABLE_TOKENS, self._context_tokens))
            theirs = rotary_tables(self._loaded.model.model, places, native.model.hidden_size)
            for wanted, table in zip(theirs, native.model.rotary, strict=True):
                ours = table[places.start : places.stop]
                wrong = ((ours - wanted).abs() > _TABLE_DIFFERENCE).any(-1).nonzero()
                if len(wrong):
                    self._refuse(
                        f"the kernels' rotary tables differ from transformers' own at position "
                        f"{first + int(wrong[0])}"
                    )

    def _refuse(self, why: str) -> None:
        raise UnsupportedModelError(f"{self._name}: {why}; the model is not served")


def _reference(
    loaded: LoadedModel, token_ids: list[int], ends: Iterable[int], adapter: str | None = None
) -> dict[int, torch.Tensor]:
    """Transformers' logits after so many of these tokens, for each of ``ends``."""
    model, device = loaded.model, loaded.device
    places = list(ends)
    with _as_transformers_itself(loaded, len(token_ids), adapter):
        logits = model(
            input_ids=torch.tensor([token_ids], device=device),
            use_cache=False,
            logits_to_keep=torch.tensor([end - 1 for end in places], device=device),
        ).logits[0]
    return dict(zip(places, logits, strict=True))


@contextmanager
def _as_transformers_itself(
    loaded: LoadedModel, num_tokens: int, adapter: str | None = None
) -> Iterator[None]:
    """With transformers' own attention, and this adapter for all tokens of a pass."""
    of_adapter: AbstractContextManager[None] = nullcontext()
    if loaded.adapters is not None:
        number = loaded.adapters.number(adapter)
        of_adapter = loaded.adapters.of(torch.full((num_tokens,), number, device=loaded.device))
    loaded.model.set_attn_implementation("sdpa")
    try:
        with of_adapter:
            yield
    finally:
        loaded.model.set_attn_implementation(ATTENTION_NAME)
