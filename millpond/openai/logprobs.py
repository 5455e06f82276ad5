"""Log-probabilities in the two shapes of OpenAI's API, with ``token_id`` beside each token. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from millpond.messages import GeneratedToken, TokenLogprob


def asked_for(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A chat body with ``logprobs`` and ``top_logprobs`` merged into the number that `SamplingParams` has.

    A number is passed through. Raises ValueError for ``top_logprobs`` without ``logprobs``.
    """
    body = dict(fields)
    wanted = body.get("logprobs")
    if wanted is True:
        body["logprobs"] = body.pop("top_logprobs", None) or 0
    elif wanted is None or wanted is False:
        body["logprobs"] = None
        if body.pop("top_logprobs", None):
            raise ValueError("top_logprobs: needs logprobs to be true")
    return body


def chat_shape(tokens: Sequence[GeneratedToken]) -> dict[str, Any]:
    return {
        "content": [
            {**_chat_token(token), "top_logprobs": [_chat_token(other) for other in token.top]}
            for token in tokens
        ]
    }


def completion_shape(tokens: Sequence[GeneratedToken]) -> dict[str, Any]:
    """``text_offset`` counts the characters of the tokens' own texts."""
    offsets, end = [], 0
    for token in tokens:
        offsets.append(end)
        end += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_ids": [token.token_id for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        # Different tokens may have the same text; keep the more likely one, which comes first.
        "top_logprobs": [{o.token: o.logprob for o in reversed(t.top)} for t in tokens],
        "text_offset": offsets,
    }


def _chat_token(token: TokenLogprob) -> dict[str, Any]:
    whole = "\ufffd" not in token.token
    return {
        "token": token.token,
        "token_id": token.token_id,
        "logprob": token.logprob,
        "bytes": list(token.token.encode()) if whole else None,
    }
