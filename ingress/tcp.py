"""The raw TCP port: newline-delimited JSON over a plain socket. A thin shell around `Connection`."""

from __future__ import annotations

import asyncio
from time import monotonic

from common.errors import ClientFault, ErrorCode, StreamError
from ingress.framing import LineReader
from ingress.shell import OpenConnection, SocketShell


class TcpShell(SocketShell):
    """One accepted TCP connection (a `Peer`).

    open_connection: makes the connection behind this socket.
    max_line_bytes: longest line.
    """

    __slots__ = ("_max_line_bytes", "_reader")

    def __init__(self, open_connection: OpenConnection, max_line_bytes: int) -> None:
        super().__init__(open_connection)
        self._max_line_bytes = max_line_bytes
        self._reader = LineReader(max_line_bytes)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        super().connection_made(transport)
        self._begin()

    def data_received(self, data: bytes) -> None:
        """Hand whole lines to the connection."""
        self._heard_at = monotonic()
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

    # Peer

    def send(self, message: bytes) -> None:
        """Write one line."""
        if self._transport is not None and not self._closing:
            self._transport.write(message + b"\n")

    def close(self, error: StreamError | None) -> None:
        """Flush, close the sending side, and wait a little for the client to close."""
        if not self._closing:
            self._end_sending()
