"""The answer that refuses a request before any endpoint or stream has it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final

logger = logging.getLogger(__name__)

PLAIN_TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Status and sentence of a refusing answer; the connection closes after it.

    headers: further headers, such as `WWW-Authenticate`.
    body: body in place of the sentence, and its content type.
    """

    status: HTTPStatus
    sentence: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    content_type: str = PLAIN_TEXT

    def after(self, seconds: int | None) -> Refusal:
        """Return the refusal with `Retry-After` set to so many seconds; unchanged for None."""
        if seconds is None:
            return self
        others = (header for header in self.headers if header[0].lower() != "retry-after")
        return replace(self, headers=(*others, ("Retry-After", str(seconds))))

    @property
    def content(self) -> bytes:
        """The body of the response."""
        return f"{self.sentence}\n".encode() if self.body is None else self.body

    def answer(self) -> bytes:
        """Return the whole response as bytes (RFC 9112)."""
        body = self.content
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Date: {formatdate(usegmt=True)}",
            f"Content-Type: {self.content_type}",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join((*lines, "\r\n")).encode("latin-1") + body


RefusalShape = Callable[[Refusal], Refusal]
"""Returns a refusal in the format of one API: the body and headers that its clients read."""


class Refused(Exception):  # noqa: N818 - it says what happened to the request
    """A request is refused, with this refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.sentence)
        self.refusal: Final = refusal


def refusing(refusal: Refusal) -> Callable[..., Awaitable[None]]:
    """Return an ASGI application that answers every request with this refusal."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = refusal.content
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in refusal.headers]
        headers += [
            (b"content-type", refusal.content_type.encode()),
            (b"content-length", str(len(body)).encode()),
        ]
        await send({"type": "http.response.start", "status": refusal.status.value, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def failed(error: BaseException) -> Refusal:
    """Log a defect of the server, and return the refusal for it."""
    logger.error("a request failed", exc_info=error)
    return Refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "The server failed; the fault is logged.")
