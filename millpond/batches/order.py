"""The order in which the rows of a batch run: by model, then by shared prefix, then by length. Pure.

Rows of like length waste little in one prefill, and a prefix that several prompts share is read from the
cache if they follow one another.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from millpond.messages import JobRequest

# Prompts that begin with the same characters, this many, share a prefix.
PREFIX_CHARS = 256


@dataclass(frozen=True, slots=True)
class OrderKey:
    """``prefix`` is a digest of the prompt's beginning; 0 for a prompt that is no longer than that."""

    queue: str
    prefix: int
    length: int


def order_key(queue: str, request: JobRequest, length: int) -> OrderKey:
    beginning = _beginning(request)
    if len(beginning) < PREFIX_CHARS:
        return OrderKey(queue, 0, length)
    digest = blake2b(beginning.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return OrderKey(queue, int.from_bytes(digest) | 1, length)


def run_order(keys: Sequence[OrderKey]) -> list[int]:
    """The places of the rows in the file, in the order in which they run."""
    shared = Counter(key.prefix for key in keys)

    def rank(place: int) -> tuple[str, int, int, int]:
        key = keys[place]
        # A prefix that nobody shares says nothing.
        prefix = key.prefix if shared[key.prefix] > 1 else 0
        return key.queue, prefix, key.length, place

    return sorted(range(len(keys)), key=rank)


def _beginning(request: JobRequest) -> str:
    if request.token_ids is not None:
        return " ".join(map(str, request.token_ids[:PREFIX_CHARS]))[:PREFIX_CHARS]
    texts = [request.system or "", request.prompt or ""]
    for message in request.messages or ():
        texts += [message.role, message.content]
        if sum(map(len, texts)) >= PREFIX_CHARS:
            break
    return "\n".join(texts)[:PREFIX_CHARS]
