"""The head of a request, as httptools has read it."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote

import httptools

from ingress.request import Request


def request_of(
    method: bytes, url: bytes, headers: Iterable[tuple[bytes, bytes]], address: str
) -> Request | None:
    """Return the request of a head; None where its target is none. address: that of the socket."""
    try:
        target = httptools.parse_url(url)
    except httptools.HttpParserError:
        return None
    if not target.path:
        return None
    return Request(
        method.decode("ascii"),
        unquote(target.path.decode("latin-1")),
        (target.query or b"").decode("latin-1"),
        tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers),
        address,
    )
