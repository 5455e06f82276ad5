"""How the tokens of a row are packed that are kept with its job, so that another worker can go on with it.

Little-endian. Of each token its id in 32 bits. If the request asked for log-probabilities, behind each id its
own in 64 bits, the number of the likeliest in 32, and of each of those its id and log-probability.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from worker.engines.base import TokenLogprobs

_ID_BYTES = 4
_SCORED = struct.Struct("<Id")  # a token and its log-probability
_COUNT = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class KeptRow:
    """A row's tokens so far; ``logprobs`` goes with them if they were asked for."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None


def pack(token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] | None) -> bytes:
    if logprobs is None:
        return struct.pack(f"<{len(token_ids)}I", *token_ids)
    parts: list[bytes] = []
    for token_id, told in zip(token_ids, logprobs, strict=True):
        parts += (_SCORED.pack(token_id, told.logprob), _COUNT.pack(len(told.top)))
        parts += (_SCORED.pack(*pair) for pair in told.top)
    return b"".join(parts)


def unpack(packed: bytes, *, with_logprobs: bool) -> KeptRow:
    """As many whole tokens as there are."""
    if not with_logprobs:
        number = len(packed) // _ID_BYTES
        return KeptRow(struct.unpack_from(f"<{number}I", packed))
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs] = []
    at = 0
    while (counted := at + _SCORED.size + _COUNT.size) <= len(packed):
        token_id, logprob = _SCORED.unpack_from(packed, at)
        [count] = _COUNT.unpack_from(packed, at + _SCORED.size)
        at = counted + count * _SCORED.size
        if at > len(packed):
            break
        top = tuple(_SCORED.unpack_from(packed, counted + i * _SCORED.size) for i in range(count))
        token_ids.append(token_id)
        logprobs.append(TokenLogprobs(logprob, top))
    return KeptRow(tuple(token_ids), tuple(logprobs))
