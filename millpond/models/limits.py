"""Checks of a request against a model's limits that need no tokenizer.

Every side that takes jobs runs them: the API and the worker as part of
`millpond.models.prompts`, the client and the command on their own.
"""

from millpond.errors import InvalidRequestError, UnknownModelError
from millpond.messages import JobRequest
from millpond.models.presets import Preset, ThinkingMarkers

# Log-probabilities in one result; each takes about 60 bytes there and in the finished message.
MAX_LOGPROB_ENTRIES = 50_000


def check_limits(request: JobRequest, preset: Preset) -> int:
    """Check the kind of prompt, the adapter and the size of the output.

    Returns ``max_tokens``, by default the preset's. Raises InvalidRequestError (or a child
    of it) naming the field and the limit.
    """
    if request.model not in (None, preset.name):
        raise UnknownModelError("model", f"{request.model!r} is not served here; {preset.name} is")
    _check_chat(request, preset)
    max_tokens = request.max_tokens if request.max_tokens is not None else preset.max_tokens
    if max_tokens > preset.max_output_tokens:
        raise InvalidRequestError(
            "max_tokens",
            f"{max_tokens} is above this model's limit of {preset.max_output_tokens}",
            limit=preset.max_output_tokens,
        )
    if request.adapter is not None and request.adapter not in preset.adapters:
        known = f"there are {', '.join(preset.adapters)}" if preset.adapters else "there are none"
        raise InvalidRequestError("adapter", f"{request.adapter!r} is not served here; {known}")
    if max_tokens >= preset.context_tokens:
        raise InvalidRequestError(
            "max_tokens",
            f"{max_tokens} leaves no room for a prompt in a context of {preset.context_tokens}",
            limit=preset.context_tokens - 1,
        )
    _check_logprobs(request, max_tokens)
    _check_reasoning(request, preset)
    return max_tokens


def thinking_of(request: JobRequest, preset: Preset) -> ThinkingMarkers | None:
    """The markers of the job's reasoning; None where the model does not reason, or only continues text."""
    conversation = request.messages is not None or (request.prompt is not None and not request.raw)
    return preset.thinking if conversation else None


def _check_reasoning(request: JobRequest, preset: Preset) -> None:
    if request.max_reasoning_tokens is None or thinking_of(request, preset) is not None:
        return
    raise InvalidRequestError(
        "max_reasoning_tokens",
        f"{preset.name} does not reason aloud"
        if preset.thinking is None
        else "applies to conversations only, not to raw prompts or token_ids",
    )


def _check_chat(request: JobRequest, preset: Preset) -> None:
    if preset.chat or request.raw or request.token_ids is not None:
        return
    raise InvalidRequestError(
        "prompt" if request.messages is None else "messages",
        f"{preset.name} is a base model, which has no chat template; send a prompt with raw, or token_ids",
    )


def _check_logprobs(request: JobRequest, max_tokens: int) -> None:
    if request.logprobs is None:
        return
    entries = request.n * max_tokens * (1 + request.logprobs)
    if entries > MAX_LOGPROB_ENTRIES:
        raise InvalidRequestError(
            "logprobs",
            f"{request.logprobs} beside each of {request.n * max_tokens} tokens make {entries} entries, "
            f"the limit is {MAX_LOGPROB_ENTRIES}; ask for fewer, or set max_tokens",
            limit=MAX_LOGPROB_ENTRIES,
        )
