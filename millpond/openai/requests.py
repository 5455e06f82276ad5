"""Bodies of ``/v1/chat/completions`` and ``/v1/completions`` as jobs. Pure.

The fields are those of OpenAI's API, plus those of `SamplingParams` and a few of `JobRequest` that OpenAI's
API lacks. Fields that are not supported here are refused by name, unless their value has no effect.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StrictBool, field_validator, model_validator
from typing_extensions import TypeIs

from millpond.messages import (
    MAX_METADATA_VALUE_CHARS,
    JobRequest,
    Message,
    Priority,
    PromptTokenIds,
    Truncation,
)
from millpond.messages.fields import CHECKED, Frozen
from millpond.messages.sampling_params import MAX_OUTPUT_TOKENS, SamplingParams
from millpond.openai import logprobs as openai_logprobs

Route = Literal["/v1/chat/completions", "/v1/completions"]
CHAT: Route = "/v1/chat/completions"
COMPLETIONS: Route = "/v1/completions"

# Fields of OpenAI's API that are not supported, each with the values that have no effect.
_NOT_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
MAX_PROMPTS = 128
# The same for one message of a conversation.
_NOT_SUPPORTED_IN_A_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}


def _given(fields: Mapping[str, Any], refused: Mapping[str, tuple[Any, ...]]) -> dict[str, Any]:
    """The fields that have an effect. Raises ValueError for one that is not supported."""
    given = {}
    for name, value in fields.items():
        if value is None:
            continue
        if name not in refused:
            given[name] = value
        elif value not in refused[name]:
            raise ValueError(f"{name}: is not supported")
    return given


def _message(fields: Any) -> Any:
    if not isinstance(fields, dict):
        return fields
    # An answer may come back as it was given; models do not read the reasoning of earlier turns.
    fields = {name: value for name, value in fields.items() if name != "reasoning_content"}
    message = _given(fields, _NOT_SUPPORTED_IN_A_MESSAGE)
    if message.get("role") == "developer":
        message["role"] = "system"
    return message


class _Body(SamplingParams):
    model: Annotated[str, Field(min_length=1, max_length=128), CHECKED] | None = None
    user: (
        Annotated[str, Field(min_length=1, max_length=MAX_METADATA_VALUE_CHARS), CHECKED] | None
    ) = Field(default=None, description="Kept in the job's metadata, as `user`.")

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_supported(cls, fields: Any) -> Any:
        return _given(fields, _NOT_SUPPORTED) if isinstance(fields, dict) else fields

    def jobs(self, **fields: Any) -> list[JobRequest]:
        """A job for each prompt, with ``fields`` of `JobRequest` beside the body's own.

        Raises ValidationError.
        """
        given = self.model_dump(include=set(JobRequest.model_fields), exclude_unset=True)
        if self.user is not None:
            given["metadata"] = {"user": self.user, **given.get("metadata", {})}
        return [JobRequest.model_validate({**given, **one, **fields}) for one in self._inputs()]

    @abstractmethod
    def _inputs(self) -> Sequence[dict[str, Any]]:
        """For each job the fields that hold what the model reads, and its limit if named anew."""


class ChatBody(_Body):
    messages: list[Annotated[Message, BeforeValidator(_message)]] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(strict=True, ge=1, le=MAX_OUTPUT_TOKENS)] | None = (
        None
    )

    @model_validator(mode="before")
    @classmethod
    def _one_number_of_logprobs(cls, fields: Any) -> Any:
        return openai_logprobs.asked_for(fields) if isinstance(fields, dict) else fields

    def _inputs(self) -> Sequence[dict[str, Any]]:
        if self.max_completion_tokens is None:
            return [{}]
        return [{"max_tokens": self.max_completion_tokens}]


_Text = Annotated[str, Field(min_length=1), CHECKED]
_Prompts = Annotated[list[_Text] | list[PromptTokenIds], Field(max_length=MAX_PROMPTS)]


class CompletionBody(_Body):
    prompt: _Text | PromptTokenIds | _Prompts = Field(
        description=f"A text, token ids, or a list of up to {MAX_PROMPTS} of either."
    )

    @field_validator("prompt", mode="before")
    @classmethod
    def _at_most(cls, prompt: Any) -> Any:
        """Before the types are tried, so that the error names this limit alone."""
        if _are_several(prompt) and len(prompt) > MAX_PROMPTS:
            raise ValueError(f"{len(prompt)} prompts; at most {MAX_PROMPTS}")
        return prompt

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        return self.prompt if _are_several(self.prompt) else [self.prompt]

    def _inputs(self) -> Sequence[dict[str, Any]]:
        return [
            {"prompt": prompt, "raw": True}
            if isinstance(prompt, str)
            else {"prompt": None, "token_ids": prompt}
            for prompt in self.prompts
        ]


def _are_several(prompt: Any) -> TypeIs[list[str] | list[list[int]]]:
    return isinstance(prompt, list) and len(prompt) > 0 and isinstance(prompt[0], str | list)


class StreamOptions(Frozen):
    include_usage: StrictBool = False
    continuous_usage_stats: StrictBool = Field(
        default=False,
        description="With include_usage: in every chunk the usage of its choice so far, as vLLM has it.",
    )
    include_obfuscation: Literal[False] = False


class _Answered(Frozen):
    """Further fields of a request that is answered or streamed directly."""

    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    cache_salt: str | None = None
    deadline_s: float | None = None
    truncate: Truncation = Truncation.ERROR
    priority: Priority = Priority.INTERACTIVE

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: needs stream to be true")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Only together with the usage at the end, as at vLLM."""
        options = self.stream_options
        return options is not None and options.include_usage and options.continuous_usage_stats


class ChatRequest(ChatBody, _Answered):
    """The body of a chat completion."""


class CompletionRequest(CompletionBody, _Answered):
    """The body of a completion."""
