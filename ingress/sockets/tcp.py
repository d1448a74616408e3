"""The raw TCP port: newline-delimited JSON over a plain socket. A thin shell around `Connection`."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Final, cast

from common.errors import ClientFault, ErrorCode, Unavailable
from common.messages import ErrorMessage
from ingress.dialects.dialect import Farewell
from ingress.dialects.native import encode_server_message
from ingress.http.refusal import Refusal
from ingress.request import Request
from ingress.sockets.framing import LineReader
from ingress.sockets.gate import SENTENCES, Gate, Place
from ingress.sockets.shell import BYTES_A_TURN, SocketShell, StreamRoute

_TOO_MANY: Final = {
    full: Unavailable(ErrorCode.TOO_MANY_CONNECTIONS, sentence) for full, sentence in SENTENCES.items()
}


class TcpShell(SocketShell):
    """One accepted TCP connection (a `Peer`).

    gate: admits or refuses the socket.
    route: returns what opens the connections of this port.
    max_line_bytes: longest line in bytes.
    """

    __slots__ = ("_at_end", "_gate", "_max_line_bytes", "_reader", "_route")

    def __init__(self, gate: Gate, route: StreamRoute, max_line_bytes: int) -> None:
        super().__init__()
        self._gate = gate
        self._route = route
        self._max_line_bytes = max_line_bytes
        self._reader = LineReader(max_line_bytes)
        self._at_end = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or refuse the client."""
        # uvloop's transports have the interface of asyncio's, but are no subclasses.
        taken = cast(asyncio.Transport, transport)
        place = self._gate.enter(taken)
        if isinstance(place, Place):
            self._begin(taken, place, self._route(Request.without_head(place.address)))
            return
        self._transport = taken
        error = _TOO_MANY.get(place)
        if error is None:
            taken.abort()
        else:
            taken.write(encode_server_message(ErrorMessage(error.code.value, error.message)) + b"\n")
            self._end_sending()

    def data_received(self, data: bytes) -> None:
        """Hand whole lines to the connection."""
        self._heard_at = monotonic()
        connection = self._connection
        if connection is None or self._closing:
            self._have_read(len(data))
            return
        if self._reading and not self._resting:
            line = self._reader.whole(data) if len(data) < BYTES_A_TURN else None
            if line is not None:
                connection.received_text(line)
                return
            self._reader.feed(data)
            self._hear(data)
        else:
            self._hold_back()
            self._reader.feed(data)

    def eof_received(self) -> bool:
        """Keep the socket open for results; a line without a newline at the end counts."""
        if self._connection is None or self._closing:
            return False
        self._at_end = True
        if not self._resting:
            self._hand_on()
        return True

    # SocketShell

    def _hand_on(self) -> None:
        reader = self._reader
        while (connection := self._connection) is not None and self._reading and not self._closing:
            if not self._may_go_on():
                return
            line = reader.next()
            if line is not None:
                connection.received_text(line)
            elif reader.too_long:
                connection.received_fault(
                    ClientFault(
                        ErrorCode.LINE_TOO_LONG,
                        f"A line is longer than {self._max_line_bytes} bytes: send shorter messages.",
                    )
                )
                return
            elif self._at_end:
                line = reader.rest()
                if line is None:
                    self._at_end = False
                    connection.ended()
                    return
                connection.received_text(line)
            else:
                return

    # Peer

    def accept(self, headers: tuple[tuple[str, str], ...]) -> None:
        """Do nothing: a TCP connection is open from the start."""

    def refuse(self, refusal: Refusal) -> None:
        """Close: there is no request to answer."""
        self._end_sending()

    def send(self, message: bytes) -> None:
        """Write one line."""
        if self._transport is not None and not self._closing:
            self._transport.write(message + b"\n")

    def close(self, farewell: Farewell) -> None:
        """Flush, close the sending side, and wait a little for the client to close."""
        if not self._closing:
            self._end_sending(farewell.error)
