"""The interface of a socket to its connection; ingress/sockets/shell.py implements it."""

from __future__ import annotations

from typing import Protocol

from ingress.dialects.dialect import Farewell
from ingress.http.refusal import Refusal


class Peer(Protocol):
    """The shell's side of a connection. None of its calls raises."""

    @property
    def silent_s(self) -> float:
        """Return how long nothing has come from the client, in seconds; 0 while it is not read."""

    @property
    def acked_bytes(self) -> int:
        """Return how many sent bytes the client has acknowledged; the number grows as it reads."""

    def began(self) -> None:
        """Note that a live stream has begun, or was resumed, on this socket."""

    def accept(self, headers: tuple[tuple[str, str], ...]) -> None:
        """Open the WebSocket; headers: further headers of the response. Does nothing on the TCP port."""

    def refuse(self, refusal: Refusal) -> None:
        """Answer a request whose WebSocket is not open with a refusal, and close."""

    def send(self, message: bytes) -> None:
        """Write one message in the shell's framing."""

    def close(self, farewell: Farewell) -> None:
        """Close once all sent messages are flushed, within a bounded time."""

    def abort(self) -> None:
        """Close now."""

    def pause_reading(self) -> None:
        """Deliver no messages until `resume_reading`: bytes that have come wait as they came."""

    def resume_reading(self) -> None:
        """Deliver messages again, the waiting ones first."""
