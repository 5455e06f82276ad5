"""Addresses to listen on."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether an address to bind to is reached from this machine alone. Unknown names are not."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
