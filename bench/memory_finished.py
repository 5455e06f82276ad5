"""What a finished job takes of the server's memory: its record and its result, the stream gone."""

import asyncio

from bench.measure import Figure, prompts
from bench.memory import JOBS, PROMPT_BYTES, sum_of_keys, used
from bench.stage import Stage
from bench.submitting import submit_pipelined
from millpond.messages import FinishReason, JobResult, JobStatus, Receipt, Usage, seed_from_id
from millpond.queue.claims import ClaimedJob

ANSWER_BYTES = 400
WINDOW_JOBS = 32
MAX_BYTES = 1_000
PLENTY = 10**9


def _result(job: ClaimedJob, text: str) -> JobResult:
    """As a worker makes it, each with numbers of its own."""
    number = job.fence % 1_000
    return JobResult(
        id=job.id,
        status=JobStatus.SUCCEEDED,
        finish_reason=FinishReason.STOP,
        text=text,
        usage=Usage(prompt_tokens=100 + number % 50, completion_tokens=80 + number % 70),
        receipt=Receipt(
            attempt=job.attempt,
            worker="a-host-of-ours-71-b3f9",
            model="qwen2.5-0.5b-instruct",
            engine="transformers",
            backend="native avx512_bf16",
            dtype="bfloat16",
            device="cpu",
            seed=seed_from_id(job.id),
            claimed_ms=job.claimed_ms,
            queue_wait_ms=job.queue_wait_ms,
            window_jobs=WINDOW_JOBS,
            group_rows=11,
            batch_rows=20 + number / 100,
            first_token_ms=300 + number / 10,
            run_ms=1_900 + number / 10,
        ),
    )


async def measure_finished(stage: Stage) -> list[Figure]:
    texts = prompts(JOBS, PROMPT_BYTES)
    answers = iter(prompts(JOBS, ANSWER_BYTES))
    await stage.clear()
    empty = await used(stage.redis)
    await submit_pipelined(stage.queue, texts)
    ids: list[str] = []
    while jobs := await _claim(stage):
        results = [(job.fence, _result(job, next(answers))) for job in jobs]
        await stage.queue.complete(results)
        ids += [result.id for _, result in results]
    assert len(ids) == JOBS
    for id in ids:
        await stage.redis.unlink(stage.queue.keys.events(id))
    while (await stage.redis.info("memory"))["lazyfree_pending_objects"]:
        await asyncio.sleep(0.05)
    delta = (await used(stage.redis) - empty) / JOBS
    keys = await sum_of_keys(stage.redis) / JOBS
    worst = max(delta, keys)
    return [
        Figure(
            f"memory of a finished job, {PROMPT_BYTES}-byte prompt, {ANSWER_BYTES}-byte answer",
            f"{delta:,.0f} B used, {keys:,.0f} B by key",
            "",
            f"{worst:,.0f} B",
            f"≤ {MAX_BYTES:,} B",
            worst <= MAX_BYTES,
        )
    ]


async def _claim(stage: Stage) -> list[ClaimedJob]:
    claim = await stage.queue.claim(
        "a-host-of-ours-71-b3f9", WINDOW_JOBS, budget_tokens=PLENTY, capacity_tokens=PLENTY
    )
    return claim.jobs
