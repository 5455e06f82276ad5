"""Where a webhook goes, as far as its text alone can be wrong. Whether that address may be called is
another question, which is asked when its name is resolved."""

import re
from ipaddress import IPv6Address
from typing import Annotated

from pydantic import AfterValidator, Field

MAX_WEBHOOK_URL_CHARS = 2_048
# No user name, which would be a password in clear, no fragment, no character that two parsers could read in
# two ways. A name in another script comes as its xn-- form.
WEBHOOK_URL_PATTERN = (
    r"^https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?([/?][!-\"$-\[\]-~]*)?$"
)
_URL = re.compile(WEBHOOK_URL_PATTERN)
MAX_PORT = 65_535


def _check(url: str) -> str:
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError(
            "must be http:// or https://, a host and a path in plain ASCII, "
            "without user name or fragment"
        )
    host, port = found.group(1), found.group(2)
    if host.startswith("["):
        try:
            IPv6Address(host[1:-1])
        except ValueError:
            raise ValueError(f"has the host {host}, which is no IPv6 address") from None
    if port is not None and not 1 <= int(port[1:]) <= MAX_PORT:
        raise ValueError(f"has the port {port[1:]}; it must be 1 to {MAX_PORT}")
    return url


WebhookUrl = Annotated[
    str,
    Field(max_length=MAX_WEBHOOK_URL_CHARS, json_schema_extra={"pattern": WEBHOOK_URL_PATTERN}),
    AfterValidator(_check),
]
