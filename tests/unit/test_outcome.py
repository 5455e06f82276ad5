"""What the ends of a job's rows make of its result."""

from dataclasses import replace

from millpond.messages import FinishReason, JobRequest, JobResult
from millpond.models.prompts import PreparedPrompt
from millpond.models.tokenization import ByteTokenizer
from millpond.openai.responses import usage_of
from millpond.queue.claims import ClaimedJob
from worker.engines.base import EngineInfo, Finished, RowStats
from worker.jobs.in_flight import InFlightJob, never_run
from worker.jobs.outcome import result_of

INFO = EngineInfo("simulated", "simulated", "m", "none", "none", 8, 256)


def ended(job: InFlightJob, text: str, *, cached_tokens: int = 0) -> Finished:
    stats = RowStats(group_rows=1, batch_rows=1.0, cached_tokens=cached_tokens)
    return Finished(job.id, FinishReason.STOP, text, tuple(text.encode()), stats)


def result_with(*cached_tokens: int) -> JobResult:
    job = InFlightJob(ClaimedJob("a", 1, 1, 0, 0, b""), window_jobs=1)
    prompt = PreparedPrompt(token_ids=[1] * 100, max_tokens=10, truncated=False)
    job.prepared(JobRequest(prompt="hi", n=len(cached_tokens) + 1), prompt)
    for row, cached in zip(job.rows, cached_tokens, strict=False):
        row.end(ended(job, "text", cached_tokens=cached))
    last = job.rows[-1]
    last.end(replace(never_run(last), reason=FinishReason.STOP))
    return result_of(job, "w", INFO, ByteTokenizer())


def test_what_the_first_text_found_in_the_cache_is_the_job_s() -> None:
    """The others find what the first has read, and one that never ran read nothing."""
    result = result_with(32, 96, 96)
    assert result.receipt is not None
    assert result.receipt.cached_tokens == 32
    assert usage_of([result, result])["prompt_tokens_details"] == {"cached_tokens": 64}
