"""A worker's registry entry: written once a heartbeat, read by everybody else."""

from dataclasses import dataclass
from enum import StrEnum

from millpond.messages import PROTOCOL_VERSION
from millpond.messages.fields import Stored

# A worker counts as alive for this long after its last registry entry.
WORKER_ALIVE_MS = 10_000


class WorkerPhase(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    HUNG = "hung"  # its engine does not come back; the process ends now


class WorkerWindow(Stored):
    """When an idle worker's window closes; ``max_wait_ms`` None: by the number of jobs alone."""

    close_jobs: int
    max_jobs: int
    max_wait_ms: float | None = None


class WorkerRates(Stored):
    """Rates and percentiles are recent; shares and totals are since the start.

    ``wait_*`` is from a job's acceptance to its claim, ``latency_*`` to its end; None without any job.
    """

    jobs_per_s: float = 0.0
    tokens_per_s: float = 0.0
    wait_p50_ms: float | None = None
    wait_p90_ms: float | None = None
    latency_p50_ms: float | None = None
    latency_p90_ms: float | None = None
    jobs_total: int = 0
    tokens_total: int = 0
    slot_share: float = 0.0


class WorkerState(WorkerRates):
    """One worker's entry. Fields that only the engine knows are None while it loads.

    ``capacity_tokens`` and ``slots`` are what it takes when it runs nothing, ``context_tokens`` is the
    most that one row may have. ``model_identity`` stands for the content of the model, see
    `millpond.models.identity`; ``model`` is only its name. ``backend`` is what computes: ``native`` or
    ``torch`` with what it runs on, ``remote``, ``simulated``. ``visible_devices`` are the cards left to it,
    as in CUDA_VISIBLE_DEVICES; None: all.
    """

    v: int = PROTOCOL_VERSION
    state: WorkerPhase
    model: str
    model_identity: str | None = None
    engine: str | None = None
    backend: str | None = None
    dtype: str | None = None
    device: str | None = None
    visible_devices: str | None = None
    slots: int | None = None
    capacity_tokens: int | None = None
    context_tokens: int | None = None
    rows: int = 0
    in_flight: int = 0
    window: WorkerWindow | None = None

    @property
    def ready(self) -> bool:
        return self.state is WorkerPhase.READY

    @property
    def made_with(self) -> str:
        """What computes, in which numbers and on which card, for people; empty while it is not known."""
        card = None if self.visible_devices is None else f"card {self.visible_devices}"
        words = (self.backend, self.dtype, card)
        return " ".join(word for word in words if word not in (None, "none"))


@dataclass(frozen=True, slots=True)
class RegisteredWorker:
    """A worker in the registry: its entry, and the entry's age."""

    id: str
    beat_age_ms: int
    state: WorkerState

    @property
    def alive(self) -> bool:
        return self.beat_age_ms <= WORKER_ALIVE_MS

    @property
    def ready(self) -> bool:
        """Alive, and taking jobs."""
        return self.alive and self.state.ready


def read_entry(id: str, value: bytes, now_ms: int) -> RegisteredWorker | None:
    """Parse a registry entry, ``BEAT_MS JSON``. None if this version cannot read it."""
    beat, _, state = value.partition(b" ")
    try:
        return RegisteredWorker(
            id, max(0, now_ms - int(beat)), WorkerState.model_validate_json(state)
        )
    except ValueError:
        return None
