"""From a request to the token ids that the model reads, under the preset's limits.

The API runs this at submit to refuse what cannot be served; the worker runs the same code to build
the rows. Checks that need no tokenizer are in `millpond.models.limits`, for clients that have none.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from millpond.errors import InvalidRequestError, PromptTooLongError
from millpond.messages import JobRequest, Message, Truncation
from millpond.models.chat_template import ChatTemplateError
from millpond.models.limits import check_limits
from millpond.models.presets import Preset
from millpond.models.tokenization import Tokenizer


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """``messages`` is the conversation that was encoded; empty if there was none, or it was truncated."""

    token_ids: list[int]
    max_tokens: int
    truncated: bool
    messages: tuple[Message, ...] = ()
    n: int = 1

    @property
    def budget_tokens(self) -> int:
        """The most KV cache that the job can need, in tokens: n times prompt and output."""
        return self.n * (len(self.token_ids) + self.max_tokens)


def prepare_prompt(request: JobRequest, preset: Preset, tokenizer: Tokenizer) -> PreparedPrompt:
    """Encode the request's input and check it against the preset's limits.

    Raises InvalidRequestError (or a child of it) naming the field and the limit.
    """
    max_tokens = check_limits(request, preset)
    _check_vocabulary(request, tokenizer)
    messages = _conversation(request, preset)
    field, token_ids = _encode(request, messages, tokenizer)
    limit = min(preset.max_prompt_tokens, preset.context_tokens - max_tokens)
    if len(token_ids) <= limit:
        return PreparedPrompt(
            token_ids, max_tokens, truncated=False, messages=messages, n=request.n
        )
    if request.truncate is Truncation.ERROR:
        raise PromptTooLongError(
            field,
            f"{len(token_ids)} tokens, the limit is {limit}; shorten it or set truncate to "
            "left, right or middle",
            limit=limit,
        )
    shortened = truncate(token_ids, limit, request.truncate)
    return PreparedPrompt(shortened, max_tokens, truncated=True, n=request.n)


def shared_prefix(preset: Preset, tokenizer: Tokenizer) -> list[int]:
    """The tokens that all prompts under the preset's own system prompt begin with.

    Empty if the model has no chat template, or the template refuses such a conversation.
    """
    conversations = [_conversation(JobRequest(prompt=p), preset) for p in ("a", "1 = 2")]
    try:
        one, other = (tokenizer.encode_chat(messages) for messages in conversations)
    except ChatTemplateError:
        return []
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return [token for token, _ in alike]


def truncate(token_ids: Sequence[int], limit: int, policy: Truncation) -> list[int]:
    """Cut to ``limit`` tokens: LEFT drops the beginning, RIGHT the end, MIDDLE the middle."""
    assert policy is not Truncation.ERROR
    assert limit >= 1
    if len(token_ids) <= limit:
        return list(token_ids)
    if policy is Truncation.LEFT:
        return list(token_ids[len(token_ids) - limit :])
    if policy is Truncation.RIGHT:
        return list(token_ids[:limit])
    head = (limit + 1) // 2
    tail = limit - head
    return [*token_ids[:head], *token_ids[len(token_ids) - tail :]]


def _conversation(request: JobRequest, preset: Preset) -> tuple[Message, ...]:
    """The conversation for the chat template, system prompt included; empty if none is needed."""
    if request.messages is not None:
        turns, system = tuple(request.messages), preset.system_prompt
    elif request.prompt is not None and not request.raw:
        turns = (Message(role="user", content=request.prompt),)
        system = preset.system_prompt if request.system is None else request.system
    else:
        return ()
    if system and turns[0].role != "system":
        return (Message(role="system", content=system), *turns)
    return turns


def _encode(
    request: JobRequest, messages: tuple[Message, ...], tokenizer: Tokenizer
) -> tuple[str, list[int]]:
    """The token ids, and the field they come from."""
    if request.token_ids is not None:
        return "token_ids", list(request.token_ids)
    field = "prompt" if request.messages is None else "messages"
    try:
        token_ids = tokenizer.encode_chat(messages) if messages else _encode_raw(request, tokenizer)
    except ChatTemplateError as error:
        raise InvalidRequestError(field, str(error)) from error
    if not token_ids:
        raise InvalidRequestError(field, "encodes to no tokens", limit=1)
    return field, token_ids


def _encode_raw(request: JobRequest, tokenizer: Tokenizer) -> list[int]:
    assert request.prompt is not None
    return tokenizer.encode(request.prompt)


def _check_vocabulary(request: JobRequest, tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size
    fields = (
        ("token_ids", enumerate(request.token_ids or ())),
        ("stop_token_ids", enumerate(request.stop_token_ids)),
        ("logit_bias", zip(request.logit_bias, request.logit_bias, strict=True)),
    )
    for field, token_ids in fields:
        for place, token_id in token_ids:
            if token_id >= size:
                raise InvalidRequestError(
                    f"{field}.{place}",
                    f"{token_id} is outside the vocabulary of {size} tokens",
                    limit=size - 1,
                )
