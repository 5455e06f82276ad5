"""How a row is sampled and when it ends: the fields that a client may set."""

from typing import Annotated, Any, Self

import orjson
from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, model_validator
from pydantic_core import PydanticCustomError

from millpond.messages.constraints import Choices, Constraint, ConstraintText, ResponseFormat
from millpond.messages.fields import CHECKED, Frozen, TokenId
from millpond.messages.votes import MIN_VOTING_TEXTS, VoteKind, VotePattern

MAX_OUTPUT_TOKENS = 131_072
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIASES = 1_024
MAX_LOGPROBS = 20
MAX_CHOICES = 16
MAX_SEED = 2**63 - 1
# As many digits as the largest token id has.
MAX_KEY_DIGITS = 10


_CONSTRAINTS = ("response_format", "guided_choice", "guided_regex", "guided_grammar")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _from_key(value: Any) -> Any:
    """Keys of a JSON object are strings, even where they are numbers."""
    digits = isinstance(value, str) and value.isascii() and value.isdigit()
    return int(value) if digits and len(value) <= MAX_KEY_DIGITS else value


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS), CHECKED]
TokenIdKey = Annotated[
    TokenId,
    BeforeValidator(
        _from_key,
        json_schema_input_type=Annotated[str, Field(pattern=f"^[0-9]{{1,{MAX_KEY_DIGITS}}}$")],
    ),
]
Bias = Annotated[StrictFloat, Field(ge=-100.0, le=100.0)]
Penalty = Annotated[StrictFloat, Field(ge=-2.0, le=2.0)]


class SamplingParams(Frozen):
    """``None`` takes the preset's default."""

    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] = Field(
        default=1, description="How many texts to write, each with a seed of its own."
    )
    vote: VoteKind | None = Field(
        default=None,
        description="Let the n texts vote: by what the last \\boxed{...} holds, by the first group of the "
        "last match of vote_pattern, or by the exact text. The rest are cancelled as soon as they cannot "
        "change the answer.",
    )
    vote_pattern: VotePattern | None = Field(
        default=None,
        description="Of a vote by regex: a regular expression of RE2, with a group around the answer.",
    )
    max_tokens: Annotated[StrictInt, Field(ge=1, le=MAX_OUTPUT_TOKENS)] | None = None
    max_reasoning_tokens: Annotated[StrictInt, Field(ge=1, le=MAX_OUTPUT_TOKENS)] | None = Field(
        default=None,
        description="Of a model that reasons aloud: end its reasoning after so many tokens, which "
        "are part of max_tokens.",
    )
    min_tokens: Annotated[StrictInt, Field(ge=0, le=MAX_OUTPUT_TOKENS)] = 0
    temperature: Annotated[StrictFloat, Field(ge=0.0, le=10.0)] | None = None
    top_p: Annotated[StrictFloat, Field(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[StrictInt, Field(ge=0, le=1_000_000)] | None = Field(
        default=None, description="Keep the k most likely tokens; 0 keeps all."
    )
    min_p: Annotated[StrictFloat, Field(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[StrictFloat, Field(ge=0.1, le=10.0)] | None = Field(
        default=None,
        description="Divides the positive logits, and multiplies the negative ones, of the tokens "
        "of the prompt and of the text so far; 1 changes nothing.",
    )
    presence_penalty: Penalty = Field(
        default=0.0, description="Taken off the logits of the tokens that were generated."
    )
    frequency_penalty: Penalty = Field(
        default=0.0,
        description="Taken off the logit of each generated token as often as it was generated.",
    )
    # Factories here and below: a mutable default would be deep-copied for every request.
    logit_bias: Annotated[dict[TokenIdKey, Bias], Field(max_length=MAX_LOGIT_BIASES)] = Field(
        default_factory=dict, description="Token ids to what is added to their logits."
    )
    seed: Annotated[StrictInt, Field(ge=0, le=MAX_SEED)] | None = None
    stop: Annotated[
        list[StopString], Field(max_length=MAX_STOP_STRINGS), BeforeValidator(_as_list)
    ] = Field(default_factory=list)
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKEN_IDS)] = Field(
        default_factory=list
    )
    ignore_eos: StrictBool = False
    loop_repeats: Annotated[StrictInt, Field(ge=2, le=1_000)] | None = Field(
        default=None,
        description="End the row when it repeats itself: its last tokens are the same 1 to 64 tokens, "
        "at least so many times in a row and over at least 32 tokens.",
    )
    logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        default=None,
        description="Give the log-probability of each generated token, and those of so many likeliest "
        "ones, as the model has them before temperature, penalties and filters.",
    )
    adapter: Annotated[str, Field(min_length=1, max_length=64), CHECKED] | None = Field(
        default=None, description="One of the model's adapters; without it the model as it is."
    )
    response_format: ResponseFormat | None = Field(
        default=None, description="Any JSON object, or JSON that a schema describes."
    )
    guided_choice: Choices | None = Field(
        default=None, description="The text is one of these; as vLLM names it, like the next two."
    )
    guided_regex: ConstraintText | None = Field(
        default=None, description="The whole text matches this regular expression."
    )
    guided_grammar: ConstraintText | None = Field(
        default=None,
        description="The text follows this context-free grammar, in Lark's form or GBNF.",
    )
    return_token_ids: StrictBool = False
    return_prompt_token_ids: StrictBool = False

    @property
    def constraint(self) -> Constraint | None:
        """What the text must look like; None if it is free."""
        if self.guided_choice is not None:
            text = orjson.dumps(self.guided_choice).decode()
            return Constraint("choice", "guided_choice", text)
        if self.guided_regex is not None:
            return Constraint("regex", "guided_regex", self.guided_regex)
        if self.guided_grammar is not None:
            return Constraint("grammar", "guided_grammar", self.guided_grammar)
        return None if self.response_format is None else self.response_format.constraint

    @model_validator(mode="after")
    def _one_constraint(self) -> Self:
        given = [name for name in _CONSTRAINTS if getattr(self, name) is not None]
        if self.response_format is not None and self.response_format.type == "text":
            given.remove("response_format")
        if len(given) > 1:
            raise ValueError(f"{given[1]}: cannot be combined with {given[0]}")
        for name, set_ in (("ignore_eos", self.ignore_eos), ("min_tokens", self.min_tokens > 0)):
            if given and set_:
                raise ValueError(f"{name}: cannot be combined with {given[0]}, which ends the text")
        return self

    @model_validator(mode="after")
    def _vote_of_several(self) -> Self:
        if self.vote is not None and self.n < MIN_VOTING_TEXTS:
            raise PydanticCustomError(
                "too_few",
                "n: {n} text cannot vote; at least {ge}",
                {"n": self.n, "ge": MIN_VOTING_TEXTS},
            )
        if (self.vote is VoteKind.REGEX) != (self.vote_pattern is not None):
            raise ValueError("vote_pattern: belongs to a vote by regex, which needs one")
        return self

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens: {self.min_tokens} is above max_tokens {self.max_tokens}")
        return self
