"""The raw TCP port: newline-delimited JSON over a plain socket. A thin shell around `Connection`."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, cast

from common.errors import ClientFault, ErrorCode, StreamError
from ingress.connection import Connection, Peer
from ingress.framing import LineReader

# How long a closed connection waits for its client to close too. Closing with unread input makes the
# kernel send a reset, which can destroy the last message on its way to the client.
LINGER_S: Final = 2.0
WRITE_HIGH_BYTES: Final = 32 * 1024

# Unanswered probes for two minutes mean that the client's machine is gone. Silence alone means nothing.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))

OpenConnection = Callable[[Peer], Connection]


def notice_dead_peers(transport: asyncio.Transport) -> None:
    """Have the kernel probe a silent connection, so that one without a peer ends."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        option = getattr(socket, name, None)  # not on every system
        if option is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)


class TcpShell(asyncio.Protocol):
    """One accepted TCP connection (a `Peer`).

    open_connection: makes the connection behind this socket.
    max_line_bytes: longest line.
    """

    __slots__ = ("_closing", "_connection", "_linger", "_max_line_bytes", "_open", "_reader", "_transport")

    def __init__(self, open_connection: OpenConnection, max_line_bytes: int) -> None:
        self._open = open_connection
        self._max_line_bytes = max_line_bytes
        self._reader = LineReader(max_line_bytes)
        self._transport: asyncio.Transport | None = None
        self._connection: Connection | None = None
        self._closing = False
        self._linger: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        # uvloop's transports have the interface of asyncio's, but are no subclass of it.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH_BYTES)
        notice_dead_peers(self._transport)
        self._connection = self._open(self)
        self._connection.open()

    def data_received(self, data: bytes) -> None:
        """Hand whole lines to the connection."""
        connection = self._connection
        if connection is None or self._closing:
            return
        for line in self._reader.feed(data):
            connection.received_text(line)
        if self._reader.too_long:
            connection.received_fault(
                ClientFault(ErrorCode.LINE_TOO_LONG, f"A line is longer than {self._max_line_bytes} bytes.")
            )

    def eof_received(self) -> bool:
        """Keep the socket open for results; a line without a newline at the end counts."""
        connection = self._connection
        if connection is None or self._closing:
            return False
        for line in self._reader.finish():
            connection.received_text(line)
        if not self._closing:
            connection.ended()
        return True

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

    def send(self, message: bytes) -> None:
        """Write one line."""
        if self._transport is not None and not self._closing:
            self._transport.write(message + b"\n")

    def close(self, error: StreamError | None) -> None:
        """Flush, close the sending side, and wait a little for the client to close."""
        transport = self._transport
        if transport is None or self._closing:
            return
        self._closing = True
        if transport.can_write_eof():
            transport.write_eof()
            transport.resume_reading()
            self._linger = asyncio.get_running_loop().call_later(LINGER_S, self.abort)
        else:
            transport.close()

    def abort(self) -> None:
        """Close now."""
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        """Take no more from the socket."""
        if self._transport is not None and not self._closing:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take from the socket again."""
        if self._transport is not None:
            self._transport.resume_reading()
