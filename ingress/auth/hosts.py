"""The host names of this server from which a web page may connect.

That a page comes from the requested host proves nothing by itself. Whoever controls the DNS of the name can
point it to this server's address once the page is loaded (DNS rebinding), and the browser then treats the
server as the page's own host.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final

from common.settings import IngressSettings

# Names that public DNS never resolves (RFC 6761, 6762, 8375).
_LOCAL_DOMAINS: Final = ("localhost", "local", "internal", "home.arpa")


class Hosts:
    """The accepted host names, as `Host` and `Origin` write them.

    IP addresses and local names are always accepted: nobody can point them elsewhere. allowed: further names,
    in lower case; `*` accepts any.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = frozenset(allowed)

    @classmethod
    def of(cls, settings: IngressSettings) -> Hosts:
        """Return the hosts that settings accept: with keys any, since a foreign page has no key."""
        if settings.auth_keys_file and not settings.allowed_hosts:
            return ANY_HOST
        return cls((*settings.allowed_hosts, settings.host.lower()))

    def include(self, host: str) -> bool:
        """Return whether a host, with or without a port, is accepted."""
        name = _name_of(host)
        if "*" in self._allowed or name in self._allowed or _is_address(name):
            return True
        # Nobody can register a domain without a dot.
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
