"""Addresses of clients behind proxies: only proxies that the operator has named are believed."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

Network = IPv4Network | IPv6Network
_IPV6_PREFIX: Final = 64


class TrustedProxies:
    """Reads `X-Forwarded-For`, to which each proxy appends the address that it was reached from.

    networks: networks of the trusted proxies; if there are none, the header is ignored.
    """

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[Network]) -> None:
        self._networks = tuple(networks)

    def includes(self, address: str) -> bool:
        """Return whether an address is a trusted proxy's."""
        if not self._networks:
            return False
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def client_of(self, peer: str, forwarded_for: list[str]) -> str:
        """Return the client's address: the nearest to the socket that is no trusted proxy's.

        peer: address of the socket.   forwarded_for: members of the header, the nearest last.
        A member that is no address ends the chain: the members before it cannot be trusted.
        """
        address = peer
        for member in reversed(forwarded_for):
            if not self.includes(address):
                break
            parsed = _parsed(_without_port(member))
            if parsed is None:
                break
            address = str(parsed)
        return address


def plain_address(address: str) -> str:
    """Return an address in its plain form: an IPv4 address mapped into IPv6 becomes plain IPv4."""
    return address[7:] if address.startswith("::ffff:") and "." in address else address


def counted_as(address: str) -> str:
    """Return the name under which an address is counted.

    An IPv6 address counts as its /64 network, since a single host may have every address of it.
    """
    if ":" not in address:
        return address
    return str(IPv6Network((address.partition("%")[0], _IPV6_PREFIX), strict=False))


def _parsed(address: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _without_port(member: str) -> str:
    """Return a member without its port, which some proxies write: `192.0.2.1:1234`, `[2001:db8::1]:1234`."""
    if member.startswith("["):
        return member[1:].partition("]")[0]
    return member.partition(":")[0] if member.count(":") == 1 else member
