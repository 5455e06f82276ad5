"""A request under way, and why a server cannot be measured. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from millpond.bench.records import Answered
from millpond.errors import MillpondError


class BenchError(MillpondError):
    """The server cannot be measured: it is not there, or it refuses what is asked."""

    code = "bench_failed"


@dataclass(slots=True)
class Timed:
    """A request under way, by the clock of `time.perf_counter`."""

    sent_s: float
    first_s: float | None = None
    last_s: float | None = None
    pieces: int = 0
    usage: Mapping[str, Any] | None = None
    job_id: str | None = None
    error: str | None = None

    def answered(self, began_s: float) -> Answered:
        usage = self.usage or {}
        return Answered(
            sent_s=self.sent_s - began_s,
            first_s=None if self.first_s is None else self.first_s - began_s,
            last_s=None if self.last_s is None else self.last_s - began_s,
            prompt_tokens=usage.get("prompt_tokens"),
            # A server that counts nothing sends a piece for each token, or nearly so.
            output_tokens=usage.get("completion_tokens", self.pieces or None),
            error=self.error,
        )
