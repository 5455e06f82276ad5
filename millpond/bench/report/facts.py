"""What a report says about how it was made, and its figures in a few words. Pure."""

from collections.abc import Sequence

from millpond.bench.figures import Figures
from millpond.bench.records import Machine, Record, Setup
from millpond.bench.report.tables import gibibytes, number

# A machine whose load is above this before the run is not quiet.
QUIET_LOAD = 0.5


def facts(record: Record) -> dict[str, str]:
    machine, setup = record.machine, record.setup
    found = {
        "command": setup.command,
        "began": f"{record.began_at}, took {record.seconds:.0f} s",
        "machine": _machine(machine),
        "load average before": number(machine.load_average),
        "versions": ", ".join(f"{name} {version}" for name, version in machine.versions.items()),
    }
    if record.runs:
        found |= _loads(setup)
    if setup.limits_ms:
        found["limits of goodput"] = ", ".join(
            f"{name} {limit:g} ms" for name, limit in setup.limits_ms.items()
        )
    for target in record.targets:
        about = [target.model or "", target.url or "a stack of its own"]
        told = {**target.settings, **target.worker}
        about += [f"{name} {value}" for name, value in told.items() if value not in (None, "none")]
        found[f"target {target.name}"] = ", ".join(filter(None, about))
    return found


def _loads(setup: Setup) -> dict[str, str]:
    return {
        "requests": f"prompts of {setup.inputs} tokens, answers of {setup.outputs}; route {setup.route}, "
        f"{'streamed' if setup.stream else 'whole'}, "
        f"temperature {setup.temperature:g}, {'end tokens ignored, ' if setup.ignore_eos else ''}"
        f"seed {setup.seed}",
        "each load": f"at most {setup.requests:,} requests, started within {setup.seconds:g} s; "
        f"{setup.warmup} before that are not counted; {setup.rounds} "
        f"round{'s' if setup.rounds > 1 else ''}",
    }


def _machine(machine: Machine) -> str:
    parts = [machine.processor, f"{machine.cores} cores", f"{gibibytes(machine.memory_bytes)} GiB"]
    parts += machine.accelerators or ["no accelerator"]
    return ", ".join([*parts, machine.system, f"Python {machine.python}"])


def warnings(record: Record, found: Sequence[Figures]) -> list[str]:
    told = []
    if not record.complete:
        told.append("The run was stopped before its end; what follows is what had been measured.")
    load = record.machine.load_average
    if load is not None and load > QUIET_LOAD:
        told.append(
            f"The machine was not quiet: its load average was {load:g} before the run began. "
            "Compare within this report, not with others."
        )
    failed = sum(one.failed for one in found)
    if failed:
        told.append(f"{failed:,} requests failed; they count in no figure but that one.")
        told += [f"Such as: {error}" for error in _errors(record)]
    return told


def _errors(record: Record) -> list[str]:
    errors = (r.error for run in record.runs for r in run.requests if r.error is not None)
    return list(dict.fromkeys(errors))[:3]


def tiles(found: Sequence[Figures]) -> dict[str, str]:
    """The best load in a few figures, beside the lightest one of its kind."""
    if not found:
        return {}
    best = max(found, key=lambda one: one.output_tokens_per_s)
    light = min(
        (one for one in found if (one.target, one.kind) == (best.target, best.kind)),
        key=lambda one: one.level,
    )
    of = f" ({best.target})" if len({one.target for one in found}) > 1 else ""
    shown = {
        f"output tokens a second, {best.load}{of}": number(best.output_tokens_per_s),
        f"requests a second, {best.load}": number(best.requests_per_s),
    }
    for load, ttft in {one.load: one.latency_ms("ttft", 50) for one in (light, best)}.items():
        if ttft is not None:
            shown[f"to the first token, {load}, p50"] = number(ttft, " ms")
    if light is not best and light.output_tokens_per_s:
        times = best.output_tokens_per_s / light.output_tokens_per_s
        shown[f"times the tokens of {light.load}"] = number(times)
    return shown
