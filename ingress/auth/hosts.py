"""Which names of this server a web page may come from.

A page's own host proves nothing where its owner has the name's DNS: the name can be given this server's
address once the page is loaded (DNS rebinding), and the browser takes the server for the page's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

# Names that no public DNS answers for (RFC 6761, 6762, 8375).
_LOCAL_DOMAINS: Final = ("localhost", "local", "internal", "home.arpa")


class Hosts:
    """Judges hosts as `Host` and `Origin` write them.

    Addresses and local names always count: nobody can have them point elsewhere. allowed: further names, in
    small letters; `*` is any.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(allowed)

    def include(self, host: str) -> bool:
        """Return whether this name, with or without a port, is this server's."""
        name = _name_of(host)
        if "*" in self._allowed or name in self._allowed or _is_address(name):
            return True
        # A name without a dot is no domain that anybody can register.
        return bool(name) and ("." not in name or name.endswith(tuple(f".{one}" for one in _LOCAL_DOMAINS)))


ANY_HOST: Final = Hosts(("*",))


def _name_of(host: str) -> str:
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
