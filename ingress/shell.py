"""What the sockets of both ports do alike: one accepted socket between its transport and its `Connection`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from time import monotonic
from typing import Final, cast

from ingress.connection import Connection
from ingress.peer import Peer

# How long a closed connection waits for its client to close too. Closing with unread input makes the
# kernel send a reset, which can destroy the last message on its way to the client.
LINGER_S: Final = 2.0
_WRITE_HIGH_BYTES: Final = 32 * 1024

# Unanswered probes for two minutes mean that the client's machine is gone. Silence alone means nothing.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))

OpenConnection = Callable[[Peer], Connection]


class SocketShell(asyncio.Protocol):
    """One accepted socket without its framing (a `Peer`): its subclass reads, sends and closes.

    A subclass notes in `_heard_at` when something came, whatever it was: a part of a message and a control
    frame are no silence either.

    open_connection: makes the connection behind this socket.
    """

    __slots__ = ("_closing", "_connection", "_heard_at", "_linger", "_open", "_reading", "_transport")

    def __init__(self, open_connection: OpenConnection) -> None:
        self._open = open_connection
        self._transport: asyncio.Transport | None = None
        self._connection: Connection | None = None
        self._closing = False
        self._reading = True
        self._heard_at = monotonic()
        self._linger: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the socket."""
        # uvloop's transports have the interface of asyncio's, but are no subclass of it.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        _notice_a_dead_peer(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._closing = True
        self._transport = None
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.lost()

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        if self._connection is not None:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        """The transport's buffer has drained."""
        if self._connection is not None:
            self._connection.resume_writing()

    # Peer

    @property
    def silent_s(self) -> float:
        """How long nothing has come from the client, in seconds; 0 while it is not read."""
        return monotonic() - self._heard_at if self._reading else 0.0

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        """Take no more from the socket."""
        if self._transport is not None and not self._closing:
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take from the socket again; the client's silence begins anew."""
        if self._transport is not None:
            self._reading = True
            self._heard_at = monotonic()
            self._transport.resume_reading()

    # For subclasses

    def _begin(self) -> None:
        """The socket is ready for messages."""
        connection = self._connection = self._open(cast(Peer, self))
        connection.open()

    def _end_sending(self) -> None:
        """Close the sending side once it is flushed; the client's end of file, or the time-out, closes
        the rest."""
        self._closing = True
        transport = self._transport
        if transport is None:
            return
        if transport.can_write_eof():
            transport.write_eof()
            self._wait_for_the_client()
        else:
            transport.close()

    def _wait_for_the_client(self) -> None:
        """Read on until the client closes too, for a bounded time."""
        if self._transport is not None:
            self._transport.resume_reading()
        if self._linger is None:
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self.abort)


def _notice_a_dead_peer(transport: asyncio.Transport) -> None:
    """Have the kernel probe a silent connection, so that one without a peer ends."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        option = getattr(socket, name, None)  # not on every system
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
