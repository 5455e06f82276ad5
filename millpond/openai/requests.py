"""Bodies of ``/v1/chat/completions`` and ``/v1/completions`` as jobs. Pure.

The fields are those of OpenAI's API, plus those of `SamplingParams` and a few of `JobRequest` that OpenAI's
API lacks. Fields that are not supported here are refused by name, unless their value has no effect.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StrictBool, field_validator, model_validator

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
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
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

    def job(self, **fields: Any) -> JobRequest:
        """The job, with ``fields`` of `JobRequest` beside the body's own. Raises ValidationError."""
        given = self.model_dump(include=set(JobRequest.model_fields), exclude_unset=True)
        if self.user is not None:
            given["metadata"] = {"user": self.user, **given.get("metadata", {})}
        return JobRequest.model_validate({**given, **self._input(), **fields})

    @abstractmethod
    def _input(self) -> dict[str, Any]:
        """The fields of the job that hold what the model reads, and its limit if named anew."""


class ChatBody(_Body):
    messages: list[Annotated[Message, BeforeValidator(_message)]] = Field(min_length=1)
    max_completion_tokens: Annotated[int, Field(strict=True, ge=1, le=MAX_OUTPUT_TOKENS)] | None = (
        None
    )

    @model_validator(mode="before")
    @classmethod
    def _one_number_of_logprobs(cls, fields: Any) -> Any:
        return openai_logprobs.asked_for(fields) if isinstance(fields, dict) else fields

    def _input(self) -> dict[str, Any]:
        if self.max_completion_tokens is None:
            return {}
        return {"max_tokens": self.max_completion_tokens}


class CompletionBody(_Body):
    prompt: Annotated[str, Field(min_length=1), CHECKED] | PromptTokenIds

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_prompt(cls, prompt: Any) -> Any:
        """A list of one prompt is that prompt."""
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
            if len(prompt) > 1:
                raise ValueError(
                    f"{len(prompt)} prompts; one for each request; a batch file takes many"
                )
            return prompt[0]
        return prompt

    def _input(self) -> dict[str, Any]:
        if isinstance(self.prompt, str):
            return {"prompt": self.prompt, "raw": True}
        return {"prompt": None, "token_ids": self.prompt}


class StreamOptions(Frozen):
    include_usage: StrictBool = False
    include_obfuscation: Literal[False] = False


class _Answered(Frozen):
    """Further fields of a request that is answered or streamed directly."""

    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
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


class ChatRequest(ChatBody, _Answered):
    """The body of a chat completion."""


class CompletionRequest(CompletionBody, _Answered):
    """The body of a completion."""
