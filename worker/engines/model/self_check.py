"""Before serving: does this engine's forward pass agree with transformers' own?

The rules in `loading` refuse what is known not to fit. This catches the rest: an architecture whose
attention wants something that nobody thought of is refused here, and never answered wrongly.
"""

from collections.abc import Sequence

import torch

from millpond.errors import UnsupportedModelError
from millpond.models.tokenization import ByteTokenizer
from worker.engines.base import GenerationRequest, Sampling
from worker.engines.model.backend import build_backend, prefill
from worker.engines.model.loading import LoadedModel
from worker.engines.sampling.sampling import Output
from worker.engines.scheduling.row import Row
from worker.engines.torch.attention import ATTENTION_NAME

_PROBE_TOKENS = (5, 29)
# A window longer than this is not probed beyond its edge.
_LONGEST_PROBE_TOKENS = 300
# Least agreement (cosine of the centred logits); rounding alone leaves about 0.999 in bfloat16.
_LEAST_AGREEMENT = {"float32": 0.9999, "int8": 0.9}
_LEAST_AGREEMENT_ROUNDED = 0.98


@torch.inference_mode()
def check(loaded: LoadedModel) -> None:
    """Compare a prefill of two rows and a decode step with transformers, each row alone.

    Raises UnsupportedModelError when they disagree.
    """
    rows = [_probe_row(i, n, loaded) for i, n in enumerate(_probe_lengths(loaded.windows))]
    kv_tokens = sum(row.most_tokens for row in rows)
    cache, runner = build_backend(loaded, kv_tokens=kv_tokens, slots=len(rows))
    cache.allocate(rows)
    _compare(loaded, rows, prefill(runner, rows, logits=True), "prefill")
    for row in rows:
        row.append(row.prompt_token_ids[0])
    cache.make_room()
    decoded, output = runner.decode(rows, logits=True)
    _compare(loaded, decoded, output, "decode")


def _probe_lengths(windows: Sequence[int | None]) -> list[int]:
    short = [w + 9 for w in windows if w is not None and w + 9 <= _LONGEST_PROBE_TOKENS]
    return sorted({*_PROBE_TOKENS, *short})


def _probe_row(index: int, length: int, loaded: LoadedModel) -> Row:
    vocab_size = loaded.model.config.vocab_size
    token_ids = [(7 * index + 31 * i + 3) % vocab_size for i in range(length)]
    sampling = Sampling(max_tokens=4, seed=0, ignore_eos=True)
    return Row(GenerationRequest(f"probe-{index}", token_ids, sampling), ByteTokenizer())


def _compare(loaded: LoadedModel, rows: Sequence[Row], output: Output, phase: str) -> None:
    least = _LEAST_AGREEMENT.get(loaded.dtype_name, _LEAST_AGREEMENT_ROUNDED)
    assert output.logits is not None
    for row, ours in zip(rows, output.logits, strict=True):
        theirs = _reference(loaded, [*row.prompt_token_ids, *row.token_ids])
        a, b = (x.double() - x.double().mean() for x in (ours, theirs))
        agreement = float(torch.nn.functional.cosine_similarity(a, b, dim=0))
        if not agreement >= least:  # NaN too
            raise UnsupportedModelError(
                f"{type(loaded.model).__name__}: in {phase}, this engine's logits agree with "
                f"transformers' own only to {agreement:.4f}; the model is not served"
            )


def _reference(loaded: LoadedModel, token_ids: list[int]) -> torch.Tensor:
    model = loaded.model
    model.set_attn_implementation("sdpa")
    try:
        ids = torch.tensor([token_ids], device=loaded.device)
        logits: torch.Tensor = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
    finally:
        model.set_attn_implementation(ATTENTION_NAME)
    return logits[0, -1]
