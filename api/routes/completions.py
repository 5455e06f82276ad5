"""``/v1/chat/completions`` and ``/v1/completions``: jobs that their own requests answer."""

import math
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from api.access.gate import Caller
from api.access.open_answers import OpenAnswer
from api.access.tenancy import Submitter
from api.answers.completions import AnsweredJobs, CompletionStream, answer_whole
from api.answers.errors import InvalidBodyError
from api.answers.openai_errors import OpenAIRoute
from api.description import examples
from api.description.openapi import KEY_PROBLEMS, SUBMIT_PROBLEMS, json_body, openai_problems
from api.requests.accepting import IdempotencyKey, accept_together, check_key, refusals_counted
from api.requests.bodies import parse, read_json
from api.services import Api, Services
from millpond.messages import JobRequest
from millpond.openai.requests import CHAT, COMPLETIONS, ChatRequest, CompletionRequest

_CHAT_EXAMPLE: dict[str, Any] = {
    "question": {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_completion_tokens": 32,
        "stream": True,
    }
}
_COMPLETION_EXAMPLE: dict[str, Any] = {
    "continuation": {"model": "smollm2-135m", "prompt": "Once upon a time", "max_tokens": 32}
}


def _responses(whole: dict[str, Any], chunk: bytes) -> dict[int | str, dict[str, Any]]:
    return {
        200: {
            "description": "The answer; with `stream`, in chunks up to `[DONE]`",
            "content": {
                "application/json": {"schema": {"type": "object"}, "example": whole},
                "text/event-stream": {"example": (b"data: %s\n\ndata: [DONE]\n" % chunk).decode()},
            },
            "headers": {"X-Job-Id": {"schema": {"type": "string"}}},
        },
        **openai_problems(*SUBMIT_PROBLEMS, *KEY_PROBLEMS, "too_many_streams"),
    }


router = APIRouter(tags=["openai"], route_class=OpenAIRoute)


@router.post(
    CHAT,
    response_class=Response,
    summary="Answer a conversation",
    responses=_responses(examples.CHAT_COMPLETION, examples.CHAT_CHUNK),
    openapi_extra=json_body(ChatRequest, _CHAT_EXAMPLE),
)
async def chat_completions(
    request: Request, api: Api, caller: Submitter, idempotency_key: IdempotencyKey = None
) -> Response:
    """As OpenAI's: whole, or in chunks with `stream`. `X-Job-Id` names the job behind it."""
    return await _answer(request, api, caller, ChatRequest, idempotency_key)


@router.post(
    COMPLETIONS,
    response_class=Response,
    summary="Continue a text",
    responses=_responses(examples.TEXT_COMPLETION, examples.TEXT_CHUNK),
    openapi_extra=json_body(CompletionRequest, _COMPLETION_EXAMPLE),
)
async def completions(
    request: Request, api: Api, caller: Submitter, idempotency_key: IdempotencyKey = None
) -> Response:
    """As OpenAI's: whole, or in chunks with `stream`. `X-Job-Id` names the job behind each prompt."""
    return await _answer(request, api, caller, CompletionRequest, idempotency_key)


async def _answer(
    request: Request,
    api: Services,
    caller: Caller,
    shape: type[ChatRequest] | type[CompletionRequest],
    idempotency_key: str | None,
) -> Response:
    key = None if idempotency_key is None else check_key(idempotency_key)
    opened = api.open_answers.open(caller)
    try:
        async with refusals_counted(api):
            body = await parse(shape, await read_json(request))
            asked = _jobs(body, caller)
            accepted = await accept_together(request, api, caller, asked, key)
        jobs = AnsweredJobs(
            served=accepted.served,
            ids=[submission.id for submission in accepted.submissions],
            tenant=caller.tenant,
            n=body.n,
            chat=shape is ChatRequest,
            kept=key is not None,  # the client can ask again under its key, and others may wait too
            created_s=math.floor(time.time()),
            opened=opened,
        )
        if body.stream:
            counted = accepted.prompt_tokens if body.continuous_usage else None
            stream = CompletionStream(
                api, jobs, include_usage=body.include_usage, prompt_tokens=counted
            )
            opened = OpenAnswer()  # the stream owns the other one now
            return stream
        return await answer_whole(api, jobs, request.receive)
    finally:
        opened.close()


def _jobs(body: ChatRequest | CompletionRequest, caller: Caller) -> list[JobRequest]:
    """As urgent as the key allows unless the body says otherwise. Raises InvalidBodyError."""
    given = "priority" in body.model_fields_set
    try:
        return body.jobs(
            stream=body.stream, priority=body.priority if given else caller.priorities[0]
        )
    except ValidationError as error:
        raise InvalidBodyError.from_pydantic(error) from None
