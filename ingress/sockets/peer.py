"""The socket behind a connection, as an interface; ingress/sockets/shell.py implements it."""

from __future__ import annotations

from typing import Protocol

from ingress.dialects.dialect import Farewell
from ingress.http.refusal import Refusal


class Peer(Protocol):
    """The shell's side of a connection. None of its calls raises."""

    @property
    def silent_s(self) -> float:
        """How long nothing has come from the client, in seconds; 0 while it is not read."""

    @property
    def acked_bytes(self) -> int:
        """How much of what was sent the client has acknowledged; it grows as the client reads."""

    def began(self) -> None:
        """Note that a live stream has begun behind the socket, or goes on there."""

    def accept(self, headers: tuple[tuple[str, str], ...]) -> None:
        """Open the WebSocket; headers: further ones of the response. Nothing to do on the TCP port."""

    def refuse(self, refusal: Refusal) -> None:
        """Answer a request whose WebSocket is not open with this instead, and close."""

    def send(self, message: bytes) -> None:
        """Write one message in the shell's framing."""

    def close(self, farewell: Farewell) -> None:
        """Close once all that was sent is flushed, within a bounded time."""

    def abort(self) -> None:
        """Close now."""

    def pause_reading(self) -> None:
        """Hear nothing more until `resume_reading`: what has come by then waits as it came."""

    def resume_reading(self) -> None:
        """Hear the client again, first what waits."""
