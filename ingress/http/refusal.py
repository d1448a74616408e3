"""An answer that refuses a request before any endpoint or stream has it."""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final


@dataclass(frozen=True, slots=True)
class Refusal:
    """Status and sentence of the answer; the connection closes after it.

    headers: further ones, such as `WWW-Authenticate`.
    """

    status: HTTPStatus
    sentence: str
    headers: tuple[tuple[str, str], ...] = ()

    def answer(self) -> bytes:
        """The whole response (RFC 9112)."""
        body = f"{self.sentence}\n".encode()
        lines = [
            f"HTTP/1.1 {self.status.value} {self.status.phrase}",
            f"Date: {formatdate(usegmt=True)}",
            "Content-Type: text/plain; charset=utf-8",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in self.headers),
        ]
        return "\r\n".join((*lines, "\r\n")).encode("latin-1") + body


class Refused(Exception):  # noqa: N818 - it says what happened to the request
    """Raised where a request is refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.sentence)
        self.refusal: Final = refusal
