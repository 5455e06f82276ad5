"""One example of each answer, for the OpenAPI file."""

from typing import Any

from millpond.queue.keys import Keys

_ID = "k3vq2c7yl5mh4tzzw6bx3a2d"
_LINKS = {"self": f"/v1/jobs/{_ID}", "events": f"/v1/jobs/{_ID}/events"}
_RECEIPT = {
    "attempt": 1,
    "worker": "gpu-box-4711-1f2e3d",
    "model": "smollm2-135m",
    "engine": "transformers",
    "backend": "torch cuda",
    "dtype": "bfloat16",
    "device": "cuda",
    "seed": 7,
    "claimed_ms": 1_760_000_000_150,
    "queue_wait_ms": 150.0,
    "window_jobs": 12,
    "group_rows": 4,
    "batch_rows": 10.5,
    "first_token_ms": 42.0,
    "run_ms": 610.0,
}

ACCEPTED: dict[str, Any] = {
    "id": _ID,
    "status": "queued",
    "links": _LINKS,
    "channel": Keys("default").events(_ID),
}
STATES: dict[str, Any] = {
    "queued": {
        "id": _ID,
        "status": "queued",
        "priority": "normal",
        "created_ms": 1_760_000_000_000,
        "attempts": 0,
        "position": 4,
        "ahead": 5,
        "estimate_s": 1.2,
        "reason": {"code": "behind_others", "message": "behind 5 jobs"},
        "links": _LINKS,
    },
    "succeeded": {
        "id": _ID,
        "status": "succeeded",
        "priority": "normal",
        "created_ms": 1_760_000_000_000,
        "attempts": 1,
        "claimed_ms": 1_760_000_000_150,
        "worker": _RECEIPT["worker"],
        "result": {
            "v": 1,
            "id": _ID,
            "status": "succeeded",
            "finish_reason": "stop",
            "text": "Because the air scatters blue light more than red.",
            "usage": {"prompt_tokens": 37, "completion_tokens": 11},
            "metadata": {"user": "42"},
            "receipt": _RECEIPT,
            "finished_ms": 1_760_000_000_760,
        },
        "links": _LINKS,
    },
}
_LISTED: dict[str, Any] = {
    "id": _ID,
    "status": "failed",
    "priority": "normal",
    "created_ms": 1_760_000_000_000,
    "attempts": 3,
    "finished_ms": 1_760_000_007_300,
    "links": _LINKS,
}
JOB_PAGE: dict[str, Any] = {"jobs": [_LISTED], "cursor": f"0~1760000007300~{_ID}"}
_DEAD: dict[str, Any] = {
    **_LISTED,
    "deaths": 0,
    "error": {"code": "generation_failed", "message": "the row's logits are not finite"},
}
DEAD_PAGE: dict[str, Any] = {"jobs": [_DEAD]}
DEAD_LETTER: dict[str, Any] = {**_DEAD, "request": {"prompt": "Why is the sky blue?"}}
CANCELLED: dict[str, Any] = {"id": _ID, "status": "cancelled", "cancelling": False}
CANCELLING: dict[str, Any] = {"id": _ID, "status": "running", "cancelling": True}
BULK: dict[str, Any] = {
    "accepted": 1,
    "refused": 1,
    "jobs": [
        {"index": 0, "status_code": 202, "id": _ID, "status": "queued"},
        {
            "index": 1,
            "status_code": 422,
            "problem": {
                "type": "urn:millpond:problem:invalid_request",
                "title": "Invalid request",
                "status": 422,
                "detail": "prompt: must not be blank",
                "code": "invalid_request",
                "errors": [{"field": "prompt", "message": "must not be blank"}],
            },
        },
    ],
}
_WORKER = {
    "id": _RECEIPT["worker"],
    "alive": True,
    "beat_age_ms": 320,
    "state": "ready",
    "model": "smollm2-135m",
    "slots": 32,
    "rows": 11,
    "jobs_per_s": 9.5,
    "slot_share": 0.34,
}
QUEUE: dict[str, Any] = {
    "queue": "default",
    "model": "smollm2-135m",
    "depth": 6,
    "max_depth": 100_000,
    "queued": {"interactive": 1, "normal": 5, "batch": 0},
    "running": 11,
    "delayed": 0,
    "dead": 0,
    "unfinished": {"acme": 14, "default": 3},
    "accepted": {"interactive": 40, "normal": 960, "batch": 0},
    "done": {"succeeded": 980, "failed": 1, "cancelled": 2, "expired": 0},
    "jobs_per_s": 9.5,
    "estimate_s": 0.6,
    "workers": [_WORKER],
}
MODELS: dict[str, Any] = {
    "object": "list",
    "data": [
        {
            "id": "smollm2-135m",
            "object": "model",
            "owned_by": "millpond",
            "ready": True,
            "workers": 1,
            "engine": "transformers",
            "backend": "torch cuda",
            "dtype": "bfloat16",
            "device": "cuda",
            "slots": 32,
            "context_tokens": 8192,
            "max_prompt_tokens": 4096,
            "max_output_tokens": 4096,
            "chat": True,
            "system_prompt": "",
            "languages": ["en"],
            "adapters": [],
            "sampling": {
                "temperature": 0.0,
                "top_p": 1.0,
                "top_k": 0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "max_tokens": 256,
            },
        }
    ],
}
HEALTH: dict[str, Any] = {"status": "ok"}
READY: dict[str, Any] = {
    "ready": True,
    "redis": True,
    "tokenizer": True,
    "workers_alive": 1,
    "workers_ready": 1,
}
METRICS = 'millpond_queued_jobs{priority="normal",queue="default"} 5.0\n'

_USAGE = {"prompt_tokens": 37, "completion_tokens": 11, "total_tokens": 48}
_MADE = {"created": 1_760_000_000, "model": "smollm2-135m"}
CHAT_COMPLETION: dict[str, Any] = {
    "id": f"chatcmpl-{_ID}",
    "object": "chat.completion",
    **_MADE,
    "choices": [
        {
            "index": 0,
            "finish_reason": "stop",
            "logprobs": None,
            "message": {
                "role": "assistant",
                "content": "The capital of France is Paris.",
                "refusal": None,
            },
        }
    ],
    "usage": _USAGE,
}
CHAT_CHUNK = (
    b'{"id":"chatcmpl-k3v...","object":"chat.completion.chunk","choices":[{"index":0,'
    b'"delta":{"content":"The"},"finish_reason":null}]}'
)
TEXT_COMPLETION: dict[str, Any] = {
    "id": f"cmpl-{_ID}",
    "object": "text_completion",
    **_MADE,
    "choices": [
        {"index": 0, "finish_reason": "length", "logprobs": None, "text": ", there was a pond"}
    ],
    "usage": _USAGE,
}
TEXT_CHUNK = (
    b'{"id":"cmpl-k3v...","object":"text_completion","choices":[{"index":0,'
    b'"text":", there","finish_reason":null}]}'
)

_FILE_ID = "file-5f0c3a9be1d24786a0c1b2d3"
FILE: dict[str, Any] = {
    "id": _FILE_ID,
    "object": "file",
    "bytes": 48_210,
    "created_at": 1_760_000_000,
    "expires_at": 1_762_592_000,
    "filename": "requests.jsonl",
    "purpose": "batch",
    "status": "processed",
    "status_details": None,
}
FILE_LIST: dict[str, Any] = {
    "object": "list",
    "data": [FILE],
    "first_id": _FILE_ID,
    "last_id": _FILE_ID,
    "has_more": False,
}
FILE_DELETED: dict[str, Any] = {"id": _FILE_ID, "object": "file", "deleted": True}
OUTPUT_LINE = (
    '{"id":"batch_req_a","custom_id":"a","response":{"status_code":200,"request_id":"k3v...",'
    '"body":{"object":"chat.completion"}},"error":null}\n'
)

_BATCH_ID = "batch_0d8e4c1f2a3b4c5d6e7f8091"
BATCH: dict[str, Any] = {
    "id": _BATCH_ID,
    "object": "batch",
    "endpoint": "/v1/chat/completions",
    "errors": None,
    "input_file_id": _FILE_ID,
    "completion_window": "24h",
    "status": "in_progress",
    "model": "smollm2-135m",
    "output_file_id": "file-91b0a1c2d3e4f5061728394a",
    "error_file_id": None,
    "created_at": 1_760_000_000,
    "in_progress_at": 1_760_000_001,
    "expires_at": 1_760_086_400,
    "finalizing_at": None,
    "completed_at": None,
    "failed_at": None,
    "expired_at": None,
    "cancelling_at": None,
    "cancelled_at": None,
    "request_counts": {"completed": 120, "failed": 0, "total": 1_000},
    "usage": {
        "input_tokens": 4_440,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 1_320,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 5_760,
    },
    "metadata": None,
}
BATCH_LIST: dict[str, Any] = {
    "object": "list",
    "data": [BATCH],
    "first_id": _BATCH_ID,
    "last_id": _BATCH_ID,
    "has_more": False,
}
