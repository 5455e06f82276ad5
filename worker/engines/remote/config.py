"""The remote engine's settings for its upstream."""

from dataclasses import dataclass, field
from typing import Literal

Route = Literal["completions", "chat"]


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """``url`` ends before ``/completions``. ``model`` None takes the first that the upstream lists.

    ``completions`` sends token ids, so the template and the limits are ours; ``chat`` sends messages
    and leaves the template to the upstream. ``timeout_s`` is the longest silence of a stream.
    """

    url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    route: Route = "completions"
    timeout_s: float = 300.0
