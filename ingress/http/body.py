"""Bodies of requests whose upgrade to another protocol is ignored.

A server may ignore an upgrade and answer in HTTP (RFC 9110, section 7.8); curl and Java's client request h2c
with their uploads. httptools stops after such a head, so a second parser reads the body.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from ingress.request import Request

_FRAMING: Final = (b"content-length", b"transfer-encoding")


def has_body(request: Request) -> bool:
    """Return whether a body follows the head of a request."""
    length, coding = request.header("content-length"), request.header("transfer-encoding")
    return length not in (None, "0") or coding is not None


def head_of_body(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a head with nothing but the headers that frame a body."""
    lines = [b"%b: %b\r\n" % header for header in headers if header[0] in _FRAMING]
    return b"POST / HTTP/1.1\r\n" + b"".join(lines) + b"\r\n"


class Body:
    """Receives the callbacks of the parser of one body, whose head is `head_of_body`, and forwards the body.

    on_trailer, on_part: called with each trailer and part.   on_end: called once; later bytes are ignored.
    """

    def __init__(
        self,
        on_trailer: Callable[[bytes, bytes], None],
        on_part: Callable[[bytes], None],
        on_end: Callable[[], None],
    ) -> None:
        self._on_trailer = on_trailer
        self._on_part = on_part
        self._on_end = on_end
        self._in_body = False
        self._is_over = False

    def on_headers_complete(self) -> None:
        """Note that the head is read."""
        self._in_body = not self._is_over

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header of the head, or a trailer."""
        if self._in_body:
            self._on_trailer(name, value)

    def on_body(self, part: bytes) -> None:
        """Take a part of the body."""
        if self._in_body:
            self._on_part(part)

    def on_message_complete(self) -> None:
        """Note that the body has ended."""
        if self._in_body:
            self._in_body, self._is_over = False, True
            self._on_end()
