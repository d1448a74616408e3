"""The head of a request, as httptools has read it."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote

import httptools

from ingress.http.refusal import Refusal
from ingress.request import Request

_VERSION: Final = Refusal(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "This port speaks HTTP/1.0 and HTTP/1.1.")
_HOST: Final = Refusal(HTTPStatus.BAD_REQUEST, "A request has one 'Host'.")
# The parser takes any list that ends with chunked, and would hand on what is compressed as it came.
_TRANSFER: Final = Refusal(HTTPStatus.NOT_IMPLEMENTED, "A 'Transfer-Encoding' here is chunked and no other.")
_CONTENT: Final = Refusal(
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "A body here has no 'Content-Encoding': send it uncompressed."
)


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


def fault_of(request: Request, version: str) -> Refusal | None:
    """Return the refusal of a head that this server cannot follow; None for any other.

    version: that of the request, such as `1.1`.
    """
    if version not in ("1.0", "1.1"):
        return _VERSION
    num_hosts = sum(name == "host" for name, _ in request.headers)
    if num_hosts > 1 or (num_hosts == 0 and version == "1.1"):
        return _HOST  # RFC 9112, section 3.2; a proxy may have judged by another one
    if any(coding != "chunked" for coding in request.tokens("transfer-encoding")):
        return _TRANSFER
    if any(coding not in ("", "identity") for coding in request.tokens("content-encoding")):
        return _CONTENT
    return None
