"""Results as OpenAI's ``chat.completion`` and ``text_completion`` objects, whole or in chunks. Pure."""

from collections.abc import Sequence
from typing import Any

from millpond.errors import MillpondError
from millpond.messages import Choice, GeneratedToken, JobResult, VoteResult
from millpond.openai import logprobs as openai_logprobs


def numbered(result: JobResult, first: int) -> list[Choice]:
    """The texts of a job, also if it has only one, numbered from ``first`` in the whole request."""
    choices = result.choices or [
        Choice(
            index=0,
            finish_reason=result.finish_reason,
            text=result.text,
            reasoning_content=result.reasoning_content,
            token_ids=result.token_ids,
            logprobs=result.logprobs,
        )
    ]
    if first == 0:
        return choices
    return [choice.model_copy(update={"index": first + choice.index}) for choice in choices]


def completion(
    results: Sequence[JobResult], *, chat: bool, model: str, created_s: int
) -> dict[str, Any]:
    """The complete response to a request: the results of its prompts, in their order, all succeeded.

    ``prompt_token_ids``, if asked for, is one list, or with several prompts a list of lists. So is ``vote``,
    whose winning text comes first.
    """
    choices: list[Choice] = []
    votes: list[dict[str, Any]] = []
    for result in results:
        if result.vote is not None:
            votes.append(_vote(result.vote, len(choices)))
        choices += _winner_first(numbered(result, len(choices)), result.vote)
    body: dict[str, Any] = {
        "id": completion_id(results[0].id, chat=chat),
        "object": "chat.completion" if chat else "text_completion",
        "created": created_s,
        "model": model,
        "choices": [_choice(choice, chat=chat) for choice in choices],
        "usage": usage_of(results),
    }
    read = [result.prompt_token_ids for result in results if result.prompt_token_ids is not None]
    if read:
        body["prompt_token_ids"] = read if len(read) > 1 else read[0]
    if votes:
        body["vote"] = votes if len(votes) > 1 else votes[0]
    return body


def _winner_first(choices: list[Choice], vote: VoteResult | None) -> list[Choice]:
    """The text that won the vote, then the others in order. Each keeps its index."""
    if vote is None or vote.winner is None:
        return choices
    winner = choices[vote.winner]
    return [winner, *(choice for choice in choices if choice is not winner)]


def _vote(vote: VoteResult, first: int) -> dict[str, Any]:
    """With the choices numbered from ``first``, as `numbered` has them."""
    shape = vote.model_dump()
    if vote.winner is not None:
        shape["winner"] = first + vote.winner
    shape["cancelled"] = [first + index for index in vote.cancelled]
    for answer in shape["answers"]:
        answer["texts"] = [first + index for index in answer["texts"]]
    return shape


def completion_id(job_id: str, *, chat: bool) -> str:
    return f"{'chatcmpl' if chat else 'cmpl'}-{job_id}"


def usage_of(results: Sequence[JobResult]) -> dict[str, Any]:
    usages = [result.usage for result in results if result.usage is not None]
    prompt_tokens = sum(usage.prompt_tokens for usage in usages)
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {
            "cached_tokens": sum(r.receipt.cached_tokens for r in results if r.receipt is not None)
        },
    }
    details = [u.completion_tokens_details for u in usages if u.completion_tokens_details]
    if details:
        reasoning_tokens = sum(detail.reasoning_tokens for detail in details)
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return usage


def _choice(choice: Choice, *, chat: bool) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "index": choice.index,
        "finish_reason": choice.finish_reason.value,
        "logprobs": _logprobs(choice.logprobs, chat=chat),
    }
    if chat:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.reasoning_content:
            message["reasoning_content"] = choice.reasoning_content
        shape["message"] = message
    else:
        shape["text"] = choice.text
    if choice.token_ids is not None:
        shape["token_ids"] = choice.token_ids
    return shape


def _logprobs(tokens: list[GeneratedToken] | None, *, chat: bool) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return (openai_logprobs.chat_shape if chat else openai_logprobs.completion_shape)(tokens)


class ChangedTextError(MillpondError):
    code = "text_changed"

    def __init__(self) -> None:
        super().__init__("the job was started again and wrote another text than was streamed")


class Chunks:
    """The chunks of one streamed response, in OpenAI's format."""

    def __init__(self, job_id: str, *, chat: bool, model: str, created_s: int) -> None:
        self._chat = chat
        self._head = {
            "id": completion_id(job_id, chat=chat),
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": created_s,
            "model": model,
        }

    def role(self, index: int) -> dict[str, Any]:
        """The first chunk of a chat's choice."""
        return self._of({**self._delta(index, ""), "delta": {"role": "assistant", "content": ""}})

    def text(self, index: int, text: str) -> dict[str, Any]:
        return self._of(self._delta(index, text))

    def reasoning(self, index: int, text: str) -> dict[str, Any]:
        """Of a chat: other completions do not reason."""
        return self._of({**self._delta(index, ""), "delta": {"reasoning_content": text}})

    def end(self, choice: Choice) -> dict[str, Any]:
        """The last chunk of a choice, with all its log-probabilities.

        Finish reasons are OpenAI's words, and three more: loop of jobs with loop_repeats, and of the texts of
        a vote cancelled and error.
        """
        shape = self._delta(choice.index, "")
        if self._chat:
            shape["delta"] = {}
        shape["finish_reason"] = choice.finish_reason.value
        shape["logprobs"] = _logprobs(choice.logprobs, chat=self._chat)
        if choice.token_ids is not None:
            shape["token_ids"] = choice.token_ids
        return self._of(shape)

    def vote(self, vote: VoteResult, first: int) -> dict[str, Any]:
        """Of the job whose choices begin with number ``first``, once all of them have ended."""
        return {**self._head, "choices": [], "vote": _vote(vote, first)}

    def usage(self, results: Sequence[JobResult]) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": usage_of(results)}

    def _delta(self, index: int, text: str) -> dict[str, Any]:
        written = {"delta": {"content": text}} if self._chat else {"text": text}
        return {"index": index, **written, "finish_reason": None, "logprobs": None}

    def _of(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "choices": [choice]}


class StreamedTexts:
    """What has been sent of each choice, so that nothing is sent twice.

    A lost attempt is repeated and normally generates the same text: what was sent is then skipped. If not,
    the methods raise ChangedTextError, since OpenAI's clients cannot withdraw text.
    """

    def __init__(self, choices: int) -> None:
        self._sent = [""] * choices

    def new_part(self, index: int, offset: int, text: str) -> str:
        """The part of ``text``, which begins at character ``offset`` of its choice, to send now.

        Empty after a gap; `rest` makes up for it.
        """
        sent = self._sent[index]
        if offset > len(sent):
            return ""
        overlap = sent[offset : offset + len(text)]
        if not text.startswith(overlap):
            raise ChangedTextError
        new = text[len(overlap) :]
        self._sent[index] += new
        return new

    def rest(self, index: int, text: str) -> str:
        """The unsent rest of a choice that has ended."""
        sent = self._sent[index]
        if not text.startswith(sent):
            raise ChangedTextError
        return text[len(sent) :]
