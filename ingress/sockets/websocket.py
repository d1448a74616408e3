"""The WebSocket port: one JSON message a text frame, raw pcm16 in binary frames.

A thin shell: websockets' sans-I/O `ServerProtocol` speaks RFC 6455, asyncio moves the bytes, and
`Connection` does the rest. Compression is off: base64 audio does not shrink enough to pay for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from http import HTTPStatus
from time import monotonic
from typing import Final

from websockets.exceptions import PayloadTooBig
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import SEND_EOF, State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from common.errors import ClientFault, ErrorCode
from ingress.connection import Connection
from ingress.dialects.dialect import Farewell
from ingress.sockets.frames import FrameReader, Other, text_frame
from ingress.sockets.gate import Gate
from ingress.sockets.shell import OpenConnection, SocketShell

STREAM_PATH: Final = "/"
_HEAD_END: Final = b"\r\n\r\n"
# The first byte of a pong, as websockets writes it.
_PONG: Final = 0x80 | Opcode.PONG


def _first_offered(protocol: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """The subprotocol of the answer. None changes what is spoken here, but browsers, which pass secrets in
    this way, close a connection whose server chooses none of those that they offered."""
    return offered[0] if offered else None


class WebSocketShell(SocketShell):
    """One accepted connection on the WebSocket port (a `Peer`).

    gate: lets the socket in, or does not.
    open_connection: makes the connection behind this socket, once the handshake is done.
    max_frame_bytes: longest message.   handshake_timeout_s: how long the handshake may take.
    """

    __slots__ = (
        "_close_frame",
        "_fragments",
        "_fragments_binary",
        "_frames",
        "_handshake",
        "_handshake_timeout_s",
        "_head_tail",
        "_max_frame_bytes",
        "_pong",
        "_protocol",
        "_writing_paused",
    )

    def __init__(
        self,
        gate: Gate,
        open_connection: OpenConnection,
        *,
        max_frame_bytes: int,
        handshake_timeout_s: float,
    ) -> None:
        super().__init__(gate, open_connection)
        self._max_frame_bytes = max_frame_bytes
        self._handshake_timeout_s = handshake_timeout_s
        self._protocol = ServerProtocol(max_size=max_frame_bytes, select_subprotocol=_first_offered)
        self._frames: FrameReader | None = None
        self._head_tail = b""
        # One array, not a list of parts: their number has no bound, since they may be empty.
        self._fragments = bytearray()
        self._fragments_binary = False
        self._writing_paused = False
        self._pong = b""
        self._close_frame: list[bytes] = []
        self._handshake: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Hand whole messages to the connection."""
        self._heard_at = monotonic()
        frames = self._frames
        if frames is None:
            self._take_head(data)
            return
        connection = self._connection
        if connection is not None and self._reading and not self._closing:
            text = frames.whole_text(data)
            if text is not None:
                connection.received_text(text)
                return
        if not self._reading:
            self._hold_back()
        frames.feed(data)
        self._hand_on()

    # SocketShell

    def _let_in(self) -> None:
        """Wait for the handshake, for a bounded time."""
        self._handshake = asyncio.get_running_loop().call_later(
            self._handshake_timeout_s, self._handshake_too_long
        )

    @property
    def held_bytes(self) -> int:
        """What has come and was not handed on."""
        return self._frames.held_bytes if self._frames is not None else 0

    def _hand_on(self) -> None:
        frames = self._frames
        if frames is None:
            return
        while self._reading:
            item = frames.next()
            if item is None:
                return
            if isinstance(item, Other):
                self._received(item.data)
            elif self._connection is not None and not self._closing:
                self._deliver(self._connection, item.payload, item.binary)

    def _take_head(self, data: bytes) -> None:
        """Take bytes of the request, and what follows it only once the request is answered: frames
        that came along with it are none before the handshake is done."""
        end = (self._head_tail + data).find(_HEAD_END)
        if end < 0:
            self._head_tail = (self._head_tail + data)[1 - len(_HEAD_END) :]
            self._received(data)
            return
        end += len(_HEAD_END) - len(self._head_tail)
        self._head_tail = b""
        self._received(data[:end])
        if self._frames is not None and end < len(data):
            self.data_received(data[end:])

    def _received(self, data: bytes) -> None:
        """Take bytes through websockets' own parser: the handshake, and frames that are not simple."""
        protocol = self._protocol
        protocol.receive_data(data)
        for event in protocol.events_received():
            if isinstance(event, Request):
                self._shake_hands(event)
            elif isinstance(event, Frame):
                self._received_frame(event)
        if protocol.parser_exc is not None:
            self._parser_failed(protocol.parser_exc)
        elif self._handshake is not None and protocol.handshake_exc is not None:
            self._refuse_garbage()
        if protocol.writes:
            self._flush()

    def eof_received(self) -> bool:
        """The client closed the socket without a closing handshake, or after it."""
        self._protocol.receive_eof()
        self._flush()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.lost()
        self._closing = True
        self._wait_for_the_client()  # for no longer than it takes to read what was sent
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed."""
        self._end_handshake()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self._writing_paused = True
        super().pause_writing()

    def resume_writing(self) -> None:
        """The transport's buffer has drained: answer the latest ping, then let results go on."""
        self._writing_paused = False
        pong, self._pong = self._pong, b""
        if pong and self._transport is not None and not self._closing:
            self._transport.write(pong)
        super().resume_writing()

    # Peer

    def send(self, message: bytes) -> None:
        """Write one text frame (RFC 6455, section 5.2; not masked, as servers do)."""
        transport = self._transport
        if transport is None or self._closing:
            return
        transport.write(text_frame(message))

    def close(self, farewell: Farewell) -> None:
        """Flush, send a close frame, and wait a little for the client's."""
        if self._transport is None or self._closing:
            return
        self._closing = True
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(farewell.code, farewell.reason)
        written, self._close_frame = self._close_frame, []
        self._write(written)
        self._flush()
        self._wait_for_the_client(farewell.error)

    # Handshake

    def _shake_hands(self, request: Request) -> None:
        protocol = self._protocol
        if request.path.partition("?")[0] != STREAM_PATH:
            protocol.send_response(
                protocol.reject(HTTPStatus.NOT_FOUND, f"There is nothing here but {STREAM_PATH}.\n")
            )
        else:
            protocol.send_response(protocol.accept(request))
        self._end_handshake()
        self._flush()
        if protocol.state is State.OPEN:
            self._frames = FrameReader(self._max_frame_bytes)
            self._begin()

    def _refuse_garbage(self) -> None:
        """Answer what is no HTTP request, or one with a body, where websockets answers nothing."""
        self._end_handshake()
        if not any(self._protocol.writes) and self._transport is not None:
            response = self._protocol.reject(
                HTTPStatus.BAD_REQUEST,
                "This port speaks WebSocket, and this is no request to open one.\n",
            )
            self._transport.write(response.serialize())

    def _handshake_too_long(self) -> None:
        self._handshake = None
        if self._transport is not None:
            response = self._protocol.reject(
                HTTPStatus.REQUEST_TIMEOUT,
                f"No WebSocket handshake within {self._handshake_timeout_s:g} s.\n",
            )
            self._closing = True
            self._transport.write(response.serialize())
            self._transport.close()

    def _end_handshake(self) -> None:
        if self._handshake is not None:
            self._handshake.cancel()
            self._handshake = None

    # Frames

    def _received_frame(self, frame: Frame) -> None:
        connection = self._connection
        if connection is None or self._closing:
            return
        opcode = frame.opcode
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            if frame.fin:
                self._deliver(connection, bytes(frame.data), opcode is Opcode.BINARY)
            else:
                self._fragments += frame.data
                self._fragments_binary = opcode is Opcode.BINARY
        elif opcode is Opcode.CONT:
            self._fragments += frame.data
            if frame.fin:
                message = bytes(self._fragments)
                self._fragments.clear()
                self._deliver(connection, message, self._fragments_binary)
        elif opcode is Opcode.CLOSE:
            # A client that has closed cannot be told anything more.
            self._connection = None
            connection.lost()

    @staticmethod
    def _deliver(connection: Connection, message: bytes, binary: bool) -> None:
        if binary:
            connection.received_binary(message)
        else:
            connection.received_text(message)

    def _parser_failed(self, error: Exception) -> None:
        connection = self._connection
        if connection is None or self._closing:
            return
        if isinstance(error, PayloadTooBig):
            # The close frame is in the protocol's queue already; what the client is still told goes in
            # front of it.
            self._close_frame += self._protocol.data_to_send()
            connection.received_fault(
                ClientFault(
                    ErrorCode.FRAME_TOO_LONG,
                    f"A message is longer than {self._max_frame_bytes} bytes.",
                )
            )
        else:
            self._connection = None
            connection.lost()

    def _flush(self) -> None:
        self._write(self._protocol.data_to_send())

    def _write(self, parts: list[bytes]) -> None:
        transport = self._transport
        if transport is None:
            return
        for data in parts:
            if data is SEND_EOF or not data:
                self._end_sending()
            elif self._writing_paused and data[0] == _PONG:
                # The client reads nothing, so pongs would add up. One is enough: the one to the
                # latest ping answers those before it (RFC 6455, section 5.5.3).
                self._pong = data
            else:
                transport.write(data)
