"""Which addresses a webhook may be sent to. Pure."""

from collections.abc import Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# Public by the registry, but not one host's own: relays and what is used by protocols.
_NO_HOSTS_IPV4 = (ip_network("192.0.0.0/24"), ip_network("192.88.99.0/24"))
# Of IPv6 only global unicast is public. So those that carry an IPv4 address are not: mapped and compatible
# ones, and NAT64's. In it lie tunnels (Teredo, 6to4) and documentation.
_GLOBAL_IPV6 = ip_network("2000::/3")
_NO_HOSTS_IPV6 = (
    ip_network("2001::/23"),
    ip_network("2001:db8::/32"),
    ip_network("2002::/16"),
    ip_network("3fff::/20"),
)


def is_public(address: Address) -> bool:
    """Whether it belongs to a host somewhere on the Internet, and to nothing nearer."""
    if not address.is_global or address.is_multicast:
        return False
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NO_HOSTS_IPV4)
    return address in _GLOBAL_IPV6 and not any(address in net for net in _NO_HOSTS_IPV6)


def may_be_called(address: str, allowed: Sequence[Network]) -> bool:
    """``allowed`` are networks that may be called although they are not public."""
    parsed = ip_address(address.partition("%")[0])
    return is_public(parsed) or any(
        parsed in network for network in allowed if network.version == parsed.version
    )


def read_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """From their CIDR notation; an address alone is a network of one. Raises ValueError."""
    return tuple(ip_network(text) for text in texts)
