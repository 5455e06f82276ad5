"""What the queue promises, and how a worker takes from it."""

import dataclasses
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationInfo, field_validator

from millpond.models.memory_plan import PREFILL_TOKENS
from millpond.queue.connection import MAX_BLOCK_S
from millpond.queue.job_queue import QueueOptions
from millpond.settings.types import Count, Seconds

HEARTBEATS_A_LEASE = 3


_PROMISES = QueueOptions()  # whose defaults are the settings'


class QueueSettings(BaseModel):
    """The window and the groups, the queue's options, the worker's times."""

    window: Literal["at-once", "hybrid", "fixed", "sliding"] = "at-once"
    window_min_jobs: Count = 2
    window_max_jobs: Count = 64
    window_max_wait_ms: Annotated[float, Field(ge=0)] = 200.0
    max_batched_tokens: Annotated[int, Field(ge=16, le=PREFILL_TOKENS)] = Field(
        default=512,
        description="The most that is prefilled between two decode steps; a long prompt goes in "
        "chunks.",
    )
    prefix_cache_tokens: Annotated[int, Field(ge=0)] = Field(
        default=32_768,
        description="Keys and values kept for rows that begin alike; 0 shares nothing.",
    )
    speculative_tokens: Annotated[int, Field(ge=0, le=48)] = Field(
        default=16,
        description="The most that is drafted for a row and verified in one step; 0 drafts nothing.",
    )
    group_padded_tokens: Count = Field(
        default=4096, description="Prefill budget of one group, padding included."
    )

    # The queue's promises
    lease_s: Seconds = _PROMISES.lease_s
    heartbeat_s: Seconds = Field(default=1.0, validate_default=True)
    max_attempts: Count = _PROMISES.max_attempts
    max_deaths: Count = Field(
        default=_PROMISES.max_deaths,
        description="Workers that may die while they run a job and nothing else.",
    )
    suspect_wait_s: Annotated[float, Field(ge=0)] = Field(
        default=_PROMISES.suspect_wait_s,
        description="Jobs to be tried alone wait this long for an idle worker; then one drains.",
    )
    retry_delay_s: Seconds = _PROMISES.retry_delay_s
    retry_delay_max_s: Seconds = Field(default=_PROMISES.retry_delay_max_s, validate_default=True)
    result_ttl_s: Seconds = _PROMISES.result_ttl_s
    event_ttl_s: Seconds = _PROMISES.event_ttl_s
    event_maxlen: Count = _PROMISES.event_maxlen
    max_depth: Count = _PROMISES.max_depth
    max_tenant_bytes: Count = Field(
        default=_PROMISES.max_tenant_bytes,
        description="What may be stored for a tenant: requests of its unfinished jobs, and results.",
    )
    submit_replicas: Annotated[int, Field(ge=0)] = Field(
        default=_PROMISES.submit_replicas,
        description="Replicas of the server that must have a job before its submit is answered.",
    )
    submit_replicas_timeout_s: Annotated[float, Field(gt=0, le=MAX_BLOCK_S)] = Field(
        default=_PROMISES.submit_replicas_timeout_s,
        description="When they take longer, the submit is refused with 503.",
    )
    ageing_ms: Annotated[float, Field(ge=0)] = Field(
        default=_PROMISES.ageing_ms,
        description="A job waits this long for each token that it is longer than a newer one.",
    )

    # The worker
    grace_s: Annotated[float, Field(ge=0)] = Field(
        default=20.0, description="After SIGTERM, time for running rows to finish."
    )
    turn_limit_s: Seconds = Field(
        default=30.0,
        description="A turn past this, and far past what turns took lately, means a hung engine.",
    )
    delta_interval_ms: Annotated[float, Field(ge=0)] = Field(
        default=50.0, description="Streamed text is written at most this often for each job."
    )
    checkpoint_tokens: Annotated[int, Field(ge=0)] = Field(
        default=32,
        description="A row's tokens are kept this often, for the worker that goes on with it; 0: never.",
    )
    metrics_host: str = Field(
        default="127.0.0.1", description="Where a worker serves its Prometheus metrics."
    )
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] | None = Field(
        default=None, description="The port for them; by default they are not served."
    )
    liveness_timeout_s: Seconds = Field(
        default=30.0,
        validate_default=True,
        description="`millpond up` kills and restarts a worker or an API that is silent for so long.",
    )

    @field_validator("heartbeat_s")
    @classmethod
    def _three_in_a_lease(cls, heartbeat_s: float, info: ValidationInfo) -> float:
        lease_s = info.data.get("lease_s", heartbeat_s * HEARTBEATS_A_LEASE)
        if heartbeat_s * HEARTBEATS_A_LEASE > lease_s:
            raise ValueError(
                f"{heartbeat_s:g} is more than a third of lease_s, which is {lease_s:g}; "
                "a lease must outlive two renewals that fail"
            )
        return heartbeat_s

    @field_validator("liveness_timeout_s")
    @classmethod
    def _longer_than_some_heartbeats(cls, timeout_s: float, info: ValidationInfo) -> float:
        heartbeat_s = info.data.get("heartbeat_s", 0.0)
        if timeout_s < heartbeat_s * HEARTBEATS_A_LEASE:
            raise ValueError(
                f"{timeout_s:g} is less than {HEARTBEATS_A_LEASE} times heartbeat_s, which is "
                f"{heartbeat_s:g}; a worker that is well would be killed"
            )
        return timeout_s

    @field_validator("retry_delay_max_s")
    @classmethod
    def _no_less_than_the_first(cls, max_s: float, info: ValidationInfo) -> float:
        first_s = info.data.get("retry_delay_s", max_s)
        if max_s < first_s:
            raise ValueError(f"{max_s:g} is less than retry_delay_s, which is {first_s:g}")
        return max_s

    def queue_options(self) -> QueueOptions:
        """The settings that are options of the queue; they have the same names there."""
        names = {field.name for field in dataclasses.fields(QueueOptions)}
        return QueueOptions(**{name: value for name, value in self if name in names})
