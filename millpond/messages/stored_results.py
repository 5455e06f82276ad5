"""A result as it lies in Redis: JSON without what is at its default, deflated.

Most of a short result is the same in every job, so zlib starts with a dictionary of that, which every
zlib can be given; docs/protocol.md has it too. A script's own results are plain JSON.
"""

import zlib

import orjson

from millpond.messages.results import JobResult

# Part of the protocol: a change makes stored results unreadable.
DICTIONARY = (
    b'"adapter":"metadata":{"choices":[{"index":"prompt_token_ids":[,"token_ids":["logprobs":['
    b'{"token_id":,"token":" ","logprob":-,"top":[{"token_id":"finish_reason":"cancelled","error":{'
    b'"code":"generation_failed","message":""}"loop""length""remote""float32""cuda"'
    b'{"v":1,"id":"","status":"succeeded","finish_reason":"stop","text":"","usage":{"prompt_tokens":1,'
    b'"completion_tokens":1},"receipt":{"attempt":1,"worker":"","model":"smollm2-135m",'
    b'"engine":"transformers","backend":"native avx512_bf16","dtype":"bfloat16","device":"cpu","seed":,'
    b'"claimed_ms":17,"queue_wait_ms":1.0,"window_jobs":1,"group_rows":1,"batch_rows":1.0,'
    b'"first_token_ms":1.0,"run_ms":1.0,"prompt_truncated":true}}'
)
# The fastest, which leaves few bytes more than the others.
LEVEL = 1


def pack(result: JobResult) -> bytes:
    fields = result.model_dump_json(exclude_defaults=True).encode()
    deflate = zlib.compressobj(LEVEL, zdict=DICTIONARY)
    return deflate.compress(b'{"v":%d,' % result.v + fields[1:]) + deflate.flush()


def unpack(stored: bytes, finished_ms: int | None = None) -> JobResult:
    """``finished_ms`` stands in the job's record."""
    text = (
        stored
        if stored.startswith(b"{")
        else zlib.decompressobj(zdict=DICTIONARY).decompress(stored)
    )
    return JobResult.model_validate({**orjson.loads(text), "finished_ms": finished_ms})
