"""What is kept of a run: every request, and what another person needs to repeat it. `report.json` is this."""

from typing import Literal

from millpond.bench.loads import Load
from millpond.messages.fields import Frozen


class Answered(Frozen):
    """One request. Times are seconds since its load began; ``error`` is set if it failed.

    ``first_s`` and ``last_s`` are those of the first and the last piece of text. The last four are from
    the receipt, and None for a server that gives none.
    """

    sent_s: float
    first_s: float | None = None
    last_s: float | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    queue_wait_ms: float | None = None
    decoding_ms: float | None = None
    batch_rows: float | None = None
    window_jobs: int | None = None


class LoadRun(Frozen):
    """One load on one target, once. ``slots`` are those of all its workers, where it says so."""

    target: str
    load: Load
    round: int
    wall_s: float
    slots: int | None = None
    requests: list[Answered]


class Target(Frozen):
    """A server that was measured. ``settings`` are those in which targets of one run differ."""

    name: str
    url: str | None = None
    settings: dict[str, str]
    model: str | None = None
    worker: dict[str, str | int | None]


class Machine(Frozen):
    """``load_average``: of the minute before the run began; near 0 if nothing else was running."""

    system: str
    processor: str
    cores: int
    memory_bytes: int | None
    accelerators: list[str]
    python: str
    versions: dict[str, str]
    load_average: float | None


class Setup(Frozen):
    """What was asked for, as text where a flag has one."""

    command: str
    route: str
    stream: bool
    inputs: str
    outputs: str
    temperature: float
    ignore_eos: bool
    seed: int
    requests: int
    seconds: float
    warmup: int
    rounds: int
    limits_ms: dict[str, float]


Outcome = Literal["fits", "waits", "fails"]


class Tried(Frozen):
    """``batch`` rows of ``length`` tokens, prompt and output together, sent at once.

    ``fits``: all ran side by side. ``waits``: the engine took ``most_rows`` of them, the others later.
    ``memory_bytes`` is the most that the worker was seen with, ``planned_bytes`` what `millpond plan` says.
    """

    batch: int
    length: int
    outcome: Outcome
    most_rows: int | None = None
    memory_bytes: int | None = None
    planned_bytes: int | None = None
    error: str | None = None


class Record(Frozen):
    version: Literal[1] = 1
    began_at: str
    seconds: float
    complete: bool
    machine: Machine
    setup: Setup
    targets: list[Target]
    runs: list[LoadRun]
    frontier: list[Tried]
