"""What web pages of the allowed origins may send and see."""

from typing import Any

from api.requests.accepting import KEY_HEADER
from millpond.settings import Settings

METHODS = ("GET", "HEAD", "POST", "DELETE")
MAX_AGE_S = 3600


def cors_options(settings: Settings) -> dict[str, Any]:
    """Without credentials: a key is sent by the page itself, never by the browser."""
    return {
        "allow_origins": settings.cors_origins,
        "allow_methods": METHODS,
        "allow_headers": (
            "Authorization",
            "X-API-Key",
            "Content-Type",
            KEY_HEADER,
            "Last-Event-ID",
        ),
        "expose_headers": (
            "Location",
            "Idempotency-Replayed",
            "RateLimit",
            "RateLimit-Policy",
            "Retry-After",
            "X-Job-Id",
        ),
        "max_age": MAX_AGE_S,
    }
