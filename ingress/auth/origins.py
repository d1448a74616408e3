"""The web pages that may connect, by their `Origin`.

A browser sends a page's requests to every server that it can reach, also within the visitor's own network,
and names the page's origin. Programs other than browsers name none.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from ingress.auth.hosts import ANY_HOST, Hosts
from ingress.request import Request


class Origins:
    """The accepted origins.

    allowed: origins besides the request's own host, in lower case; `*` accepts any.
    hosts: the accepted names of the request's own host.
    """

    def __init__(self, allowed: Iterable[str], hosts: Hosts = ANY_HOST) -> None:
        self._allowed = frozenset(allowed)
        self._hosts = hosts

    def allow(self, request: Request) -> bool:
        """Return whether the request's page may connect; a request without an `Origin` always may."""
        origin = request.header("origin")
        if origin is None:
            return True
        origin = origin.strip().lower()
        if "*" in self._allowed or origin in self._allowed:
            return True
        host = request.header("host")
        own = host is not None and _host_of(origin) == host.strip().lower()
        return own and self._hosts.include(host or "")


def _host_of(origin: str) -> str | None:
    """Return host and port of an origin, as a `Host` header writes them."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None
