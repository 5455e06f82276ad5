"""What is sent to the upstream and how its chunks are read. Pure."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from millpond.messages import FinishReason
from millpond.messages.constraints import Constraint
from millpond.messages.sampling_params import MAX_SEED
from worker.engines.base import GenerationRequest, RowUsage, Sampling, TokenLogprobs
from worker.engines.remote.config import Route

PATHS: dict[Route, str] = {"completions": "completions", "chat": "chat/completions"}
_ENDS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class ChunkError(Exception):
    """A malformed chunk."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a stream. ``token_ids`` is None where the upstream does not tell them.

    ``usage`` comes with the last chunk, from upstreams that count. ``reasoning`` is what an upstream
    tells apart from the text.
    """

    text: str = ""
    token_ids: tuple[int, ...] | None = None
    end: FinishReason | None = None
    usage: RowUsage | None = None
    logprobs: tuple[TokenLogprobs, ...] | None = None
    reasoning: str = ""


def body(
    request: GenerationRequest,
    done: Sequence[int],
    *,
    route: Route,
    model: str,
    end_token_ids: Sequence[int],
    exact: bool,
) -> dict[str, Any]:
    """The request for a row of which the tokens ``done`` are there already.

    ``exact``: the upstream tells token ids, so stop strings are found here, and what ends a row is
    told it in full. Else only what differs from the usual is sent, since a server may refuse
    fields that it does not know.
    """
    sampling = request.sampling
    fields: dict[str, Any] = {
        "model": model,
        "stream": True,
        "max_tokens": sampling.max_tokens - len(done),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        # A row that goes on must not draw the same numbers again.
        "seed": (sampling.seed + len(done)) % (MAX_SEED + 1),
    }
    if route == "completions":
        fields["prompt"] = [*request.prompt_token_ids, *done]
    else:
        fields["messages"] = [{"role": m.role, "content": m.content} for m in request.messages]
    if request.grammar is not None:
        fields |= _constraint(request.grammar.constraint)
    if exact:
        ends = () if sampling.ignore_eos else end_token_ids
        if sampling.logprobs is not None:
            fields |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
        if request.cache_salt:
            fields["cache_salt"] = request.cache_salt
        # In full, since the upstream may have defaults of its own.
        return fields | {
            "return_token_ids": True,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "logit_bias": _bias(sampling),
            "min_tokens": max(0, sampling.min_tokens - len(done)),
            "ignore_eos": sampling.ignore_eos,
            "stop_token_ids": sorted({*ends, *sampling.stop_token_ids}),
        }
    return fields | {"stream_options": {"include_usage": True}} | _unusual(sampling)


def _constraint(constraint: Constraint) -> dict[str, Any]:
    """In OpenAI's words where it has some, else in those of vLLM."""
    match constraint.kind:
        case "json_object":
            return {"response_format": {"type": "json_object"}}
        case "json_schema":
            schema = {"name": "schema", "schema": orjson.loads(constraint.text), "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case "choice":
            return {"structured_outputs": {"choice": orjson.loads(constraint.text)}}
        case _:
            return {"structured_outputs": {constraint.kind: constraint.text}}


def follows(constraint: Constraint, text: str) -> bool:
    """Whether a whole text is what was asked for, as far as is easily seen: an upstream may ignore a field
    that it does not know."""
    match constraint.kind:
        case "json_object" | "json_schema":
            try:
                value = json.loads(text)  # which reads integers of any length
            except (ValueError, RecursionError):
                return False
            return constraint.kind == "json_schema" or isinstance(value, dict)
        case "choice":
            return text in orjson.loads(constraint.text)
        case "regex" | "grammar":
            return True


def _unusual(sampling: Sampling) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": _bias(sampling),
        "min_tokens": sampling.min_tokens,
        "ignore_eos": sampling.ignore_eos,
        "stop": list(sampling.stop),
        "stop_token_ids": list(sampling.stop_token_ids),
    }
    if sampling.repetition_penalty != 1:
        fields["repetition_penalty"] = sampling.repetition_penalty
    return {name: value for name, value in fields.items() if value}


def _bias(sampling: Sampling) -> dict[str, float]:
    return {str(token_id): bias for token_id, bias in sampling.logit_bias}


def read_chunk(data: Any) -> Chunk:
    """One parsed ``data:`` event of either route. Raises ChunkError."""
    if not isinstance(data, dict):
        raise ChunkError("an event is no JSON object")
    if data.get("error"):
        raise ChunkError(error_message(data) or "an error without a message")
    usage = _usage(data.get("usage"))
    choices = data.get("choices")
    if not choices:
        return Chunk(usage=usage)
    try:
        choice = choices[0]
        delta = choice.get("delta") or {}
        text = choice.get("text") or delta.get("content") or ""
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        ids = choice.get("token_ids")
        token_ids = None if ids is None else tuple(int(i) for i in ids)
        reason = choice.get("finish_reason") or None
        told = choice.get("logprobs")
        logprobs = None if told is None or token_ids is None else _logprobs(told)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ChunkError(f"an event cannot be read: {type(error).__name__}") from error
    if not isinstance(text, str) or not isinstance(reasoning, str):
        raise ChunkError("the text of an event is no string")
    if reason is not None and reason not in _ENDS:
        raise ChunkError(f"the upstream ended the row with finish_reason {str(reason)[:40]!r}")
    end = None if reason is None else _ENDS[reason]
    return Chunk(text, token_ids, end, usage, logprobs, reasoning)


def error_message(data: Any) -> str:
    """The message of an error body, in OpenAI's shape or one of the usual others; may be empty."""
    if not isinstance(data, dict):
        return ""
    error = data.get("error", data)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or ""
    return str(error)[:500]


def _logprobs(told: Any) -> tuple[TokenLogprobs, ...]:
    """Of completions with ``return_tokens_as_token_ids``: tokens are written ``token_id:ID``."""
    own, tops = told["token_logprobs"], told["top_logprobs"] or ()
    return tuple(
        TokenLogprobs(float(logprob), _sorted_top(top or {}))
        for logprob, top in zip(own, tops, strict=True)
    )


def _sorted_top(top: dict[str, float]) -> tuple[tuple[int, float], ...]:
    pairs = [(int(name.removeprefix("token_id:")), float(score)) for name, score in top.items()]
    return tuple(sorted(pairs, key=lambda pair: -pair[1]))


def _usage(usage: Any) -> RowUsage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt, int) or not isinstance(completion, int):
        return None
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return RowUsage(prompt, completion, cached if isinstance(cached, int) else 0)
