"""From the queue's views to the routes' answers."""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import Any, cast

import orjson

from api.answers.schemas import (
    DeadLetter,
    JobAccepted,
    JobPage,
    JobState,
    LeasesEntry,
    Links,
    ListedJob,
    LiveQueueAnswer,
    ModelEntry,
    ModelList,
    QueueAnswer,
    SamplingDefaults,
    WorkerEntry,
)
from api.answers.sse import encode
from api.answers.wait_reason import wait_estimate_s, wait_reason
from api.directory import ServedQueue
from millpond.listing import ListedJob as Listed
from millpond.listing import Page
from millpond.messages import EventType, JobEvent, JobRequest, JobStatus
from millpond.queue.keys import Keys
from millpond.queue.results import JobView, QueueState
from millpond.queue.submission import Submission
from millpond.queue.watching import QueueOverview

# Line breaks in Unicode, but not in the event stream's grammar: readers that split lines the Unicode
# way, as Python's do, must not find them inside the data.
_LINE_ENDS = {c.encode(): b"\\u%04x" % ord(c) for c in "\x85\u2028\u2029"}


_LISTED_FIELDS = (
    *("id", "status", "priority", "created_ms", "attempts"),
    *("claimed_ms", "finished_ms", "error"),
)
# Fields of a worker's state that describe its model.
_TOLD_OF_MODELS = {"engine", "dtype", "device", "context_tokens"}


def job_path(id: str) -> str:
    return f"/v1/jobs/{id}"


def links(id: str) -> Links:
    return Links(self=job_path(id), events=f"{job_path(id)}/events")


def job_accepted(submission: Submission, keys: Keys) -> JobAccepted:
    return JobAccepted(
        id=submission.id,
        status=submission.status,
        links=links(submission.id),
        channel=keys.events(submission.id),
    )


def job_state(view: JobView, state: QueueState | None, *, show_worker: bool) -> JobState:
    """``state`` is needed for a queued job only, to say why it waits."""
    waiting = state is not None and view.status is JobStatus.QUEUED
    return JobState(
        id=view.id,
        status=view.status,
        priority=view.priority,
        created_ms=view.created_ms,
        attempts=view.attempts,
        claimed_ms=view.claimed_ms,
        worker=view.worker if show_worker else None,
        cancelling=view.cancelling or None,
        position=view.position,
        ahead=view.ahead,
        estimate_s=wait_estimate_s(view, state) if state is not None and waiting else None,
        reason=wait_reason(view, state) if state is not None and waiting else None,
        result=view.result if show_worker else view.result and view.result.without_worker(),
        links=links(view.id),
    )


def job_page(page: Page) -> JobPage:
    return JobPage(jobs=[ListedJob(**_line(job)) for job in page.jobs], cursor=page.cursor)


def dead_letter(job: Listed, body: JobRequest) -> DeadLetter:
    request = body.model_dump(mode="json", exclude_defaults=True)
    return DeadLetter(**_line(job), request=request)


def _line(job: Listed) -> dict[str, Any]:
    fields = {name: getattr(job, name) for name in _LISTED_FIELDS}
    return {**fields, "deaths": job.deaths if job.error else None, "links": links(job.id)}


async def encoded(
    events: AsyncIterator[JobEvent], *, show_worker: bool
) -> AsyncGenerator[bytes, None]:
    """A job's events as the client gets them."""
    async with contextlib.aclosing(cast(AsyncGenerator[JobEvent, None], events)) as following:
        async for event in following:
            if not show_worker and event.result is not None:
                event = event.model_copy(update={"result": event.result.without_worker()})
            yield encode(event.type, event_data(event), event.event_id)


def event_data(event: JobEvent) -> bytes:
    """The fields that this type of event has, as JSON on one line."""
    fields: dict[str, object] = {"type": event.type, "id": event.id, "attempt": event.attempt}
    match event.type:
        case EventType.DELTA | EventType.REASONING:
            fields |= {"text": event.text, "offset": event.offset}
            if event.index is not None:
                fields["index"] = event.index
        case EventType.RESET | EventType.REQUEUED:
            fields |= {"reason": event.reason}
        case EventType.FINISHED if event.result is not None:
            fields |= {"result": event.result.model_dump(mode="json", exclude_none=True)}
    data = orjson.dumps(fields)
    for character, escape in _LINE_ENDS.items():
        data = data.replace(character, escape)
    return data


def queue_answer(served: ServedQueue, max_depth: int, state: QueueState) -> QueueAnswer:
    return QueueAnswer(**_queue_fields(served, max_depth, state))


def live_queue_answer(
    served: ServedQueue, max_depth: int, state: QueueState, overview: QueueOverview
) -> LiveQueueAnswer:
    leases = {
        worker: LeasesEntry(number=held.number, first_ends_in_ms=held.first_ends_in_ms)
        for worker, held in overview.leases.items()
    }
    fields = _queue_fields(served, max_depth, state)
    return LiveQueueAnswer(**fields, lanes=overview.lanes, leases=leases)


def _queue_fields(served: ServedQueue, max_depth: int, state: QueueState) -> dict[str, Any]:
    pace = state.jobs_per_s
    return {
        "queue": served.name,
        "model": served.model,
        "depth": state.depth,
        "max_depth": max_depth,
        "queued": state.queued,
        "running": state.running,
        "delayed": state.delayed,
        "dead": state.dead,
        "unfinished": state.unfinished,
        "accepted": state.accepted,
        "done": state.done,
        "jobs_per_s": round(pace, 3),
        "estimate_s": round(state.depth / pace, 1) if pace > 0 else None,
        "workers": [
            WorkerEntry.model_validate(
                {
                    **w.state.model_dump(exclude={"v"}, exclude_none=True),
                    "id": w.id,
                    "alive": w.alive,
                    "beat_age_ms": w.beat_age_ms,
                }
            )
            for w in state.workers
        ],
    }


def model_list(queues: Iterable[tuple[ServedQueue, QueueState]]) -> ModelList:
    """The model of each queue, with a worker or without."""
    entries = [_model_entry(served, state) for served, state in queues]
    return ModelList(data=sorted(entries, key=lambda entry: entry.id))


def _model_entry(served: ServedQueue, state: QueueState) -> ModelEntry:
    serving = [w.state for w in state.workers if w.alive]
    ready = [s for s in serving if s.ready]
    about = next(iter(ready or serving), None)
    preset = served.tokenizing.preset
    return ModelEntry(
        id=served.model,
        max_prompt_tokens=preset.max_prompt_tokens,
        max_output_tokens=preset.max_output_tokens,
        ready=bool(ready),
        workers=len(serving),
        slots=sum(s.slots or 0 for s in ready) or None,
        chat=preset.chat,
        system_prompt=preset.system_prompt,
        languages=list(preset.languages),
        adapters=list(preset.adapters),
        sampling=SamplingDefaults(
            temperature=preset.temperature,
            top_p=preset.top_p,
            top_k=preset.top_k,
            min_p=preset.min_p,
            repetition_penalty=preset.repetition_penalty,
            max_tokens=preset.max_tokens,
        ),
        **({} if about is None else about.model_dump(include=_TOLD_OF_MODELS)),
    )
