"""The WebSocket port: one JSON message a text frame, raw audio in binary frames.

A thin shell around `Connection`. ingress/http has read and checked the request; the response that opens the
WebSocket is sent when `Connection` accepts. Compression is off: base64 audio does not shrink enough to pay
for it.

websockets' sans-I/O `ServerProtocol` speaks RFC 6455. Its parser is a generator that builds several objects
for every frame, which took a fifth of an ingress's time. So `FrameReader`, without I/O, takes the frames of
nearly all traffic: a whole, masked text or binary frame costs it a header check and one unmasking. Every
other frame (control, fragmented, unmasked, with reserved bits, too long) goes to `ServerProtocol` as it came,
so RFC 6455 is enforced in one place only.
"""

from __future__ import annotations

import asyncio
import logging
from struct import Struct
from time import monotonic
from typing import Final, NamedTuple

from websockets.exceptions import PayloadTooBig
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import SEND_EOF, State
from websockets.server import ServerProtocol

from common.errors import ClientFault, ErrorCode
from ingress.clients.connection import Connection
from ingress.dialects.dialect import Farewell
from ingress.http.refusal import Refusal
from ingress.sockets.gate import Place
from ingress.sockets.linger import LINGER_S, Linger
from ingress.sockets.pinger import MAX_UNANSWERED, Pinger
from ingress.sockets.shell import BYTES_A_TURN, OpenConnection, SocketShell

try:
    from websockets.speedups import apply_mask
except ImportError:
    from websockets.utils import apply_mask

# First bytes of whole frames.
_TEXT: Final = 0x81
_BINARY: Final = 0x82
_PONG: Final = 0x8A
_WHOLE: Final = (_TEXT, _BINARY)
_MASKED: Final = 0x80
# A masked frame whose length takes two bytes (126 to 65,535): its second byte, and its header's size.
_MASKED_LONG: Final = _MASKED | 126
_LONG_HEADER: Final = 8
_MAX_CONTROL: Final = 125
_SHORT_HEADER: Final = 2
_HEADER_16: Final = Struct(">BBH").pack
_PING: Final = Frame(Opcode.PING, b"").serialize(mask=False)
# Close code of RFC 6455, section 7.4.1, with which other servers too close after unanswered pings.
_NO_PONG: Final = (1011, "no pong")

logger = logging.getLogger(__name__)


def text_frame(payload: bytes) -> bytes:
    """Return one whole text frame (RFC 6455, section 5.2), not masked, as a server's frames have to be."""
    size = len(payload)
    if size < 126:
        return bytes((_TEXT, size)) + payload
    if size < 65536:
        return _HEADER_16(_TEXT, 126, size) + payload
    return b"\x81\x7f" + size.to_bytes(8) + payload


class Message(NamedTuple):
    """The payload of one whole message."""

    payload: bytes
    binary: bool


class Other(NamedTuple):
    """The bytes of one frame for the general parser; all later bytes too, where that parser has to refuse."""

    data: bytes
    is_pong: bool = False  # whether it is a pong that RFC 6455 allows


class FrameReader:
    """Holds received bytes and cuts them into messages and other frames, in order, one a call.

    The caller may stop in the middle of the bytes of one read; the rest stays as it came.

    max_payload_bytes: a longer frame is handed on as soon as its header is there. Apart from bytes that wait
        to be taken, at most such a frame and its header are held.
    """

    __slots__ = ("_fragmented", "_held", "_max", "_needed", "_refused")

    def __init__(self, max_payload_bytes: int) -> None:
        self._max = max_payload_bytes
        self._held = bytearray()
        self._needed = _SHORT_HEADER  # least number of bytes up to the end of the first held frame
        self._fragmented = False
        self._refused = False

    def whole(self, data: bytes) -> bytes | None:
        """Return the payload if `data` is one text or binary frame of some length, as nearly each read is.

        Returns None for other data, which `feed` takes. The frame's first byte says which of the two it is.
        """
        if len(data) < _LONG_HEADER or data[0] not in _WHOLE or data[1] != _MASKED_LONG or self._held:
            return None
        length = (data[2] << 8) | data[3]
        if len(data) != length + _LONG_HEADER or length > self._max or self._fragmented or self._refused:
            return None
        return apply_mask(data[_LONG_HEADER:], data[4:_LONG_HEADER])

    def feed(self, data: bytes) -> None:
        """Take bytes from the peer."""
        self._held += data

    @property
    def waits_for_a_pong(self) -> bool:
        """Whether it holds nothing, or only the beginning of a pong."""
        return not self._held or self._held[0] == _PONG

    def next(self) -> Message | Other | None:
        """Return the next message or other frame, or None if none is complete yet."""
        held = self._held
        if len(held) < self._needed:
            return None
        if self._refused:
            return self._refuse()
        first, second = held[0], held[1]
        length = second & 0x7F
        start = _SHORT_HEADER
        if length >= 126:
            start += 2 if length == 126 else 8
            if len(held) < start:
                self._needed = start
                return None
            length = int.from_bytes(held[_SHORT_HEADER:start])
        if length > self._max or not second & _MASKED or first & 0x70:
            self._refused = True
            return self._refuse()
        body = start + 4
        stop = body + length
        if len(held) < stop:
            self._needed = stop
            return None
        self._needed = _SHORT_HEADER
        found: Message | Other
        if first in _WHOLE and not self._fragmented:
            found = Message(apply_mask(held[body:stop], held[start:body]), first == _BINARY)
        else:
            if not first & 0x08:  # no control frame: a message begins, goes on or ends
                self._fragmented = not first & 0x80
            found = Other(bytes(held[:stop]), first == _PONG and length <= _MAX_CONTROL)
        del held[:stop]
        return found

    def _refuse(self) -> Other:
        everything = Other(bytes(self._held))
        self._held.clear()
        self._needed = 1
        return everything


class WebSocketShell(SocketShell):
    """One connection on which a WebSocket is open, or will be (a `Peer`).

    max_frame_bytes: longest message in bytes.   pinger: calls `beat` when the client is to be pinged.
    """

    __slots__ = (
        "_close_frame",
        "_fragments",
        "_fragments_binary",
        "_frames",
        "_max_frame_bytes",
        "_opening",
        "_pinger",
        "_pong",
        "_protocol",
        "_unanswered_pings",
        "_writing_paused",
    )

    def __init__(self, max_frame_bytes: int, pinger: Pinger) -> None:
        super().__init__()
        self._pinger = pinger
        self._unanswered_pings = 0
        self._max_frame_bytes = max_frame_bytes
        self._protocol = ServerProtocol(state=State.OPEN, max_size=max_frame_bytes)
        self._frames = FrameReader(max_frame_bytes)
        # One array, not a list of parts: their number has no bound, since they may be empty.
        self._fragments = bytearray()
        self._fragments_binary = False
        self._writing_paused = False
        self._pong = b""
        self._close_frame: list[bytes] = []
        self._opening: Response | None = None  # the response that opens the WebSocket, until it is sent

    def take_over(
        self,
        transport: asyncio.Transport,
        place: Place,
        open_connection: OpenConnection,
        opening: Response,
        rest: bytes,
    ) -> None:
        """Take over a socket whose client has requested a WebSocket.

        opening: the response that opens it.   rest: bytes that came with the request.
        """
        self._opening = opening
        self._begin(transport, place, open_connection)
        if rest:
            self.data_received(rest)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """Hand whole messages to the connection."""
        if self._opening is not None and self._closing:
            self._have_read(len(data))
            return  # the client was refused
        frames = self._frames
        connection = self._connection
        if connection is not None and self._reading and not self._resting and not self._closing:
            message = frames.whole(data) if len(data) < BYTES_A_TURN else None
            if message is not None:
                self._heard_at = monotonic()
                if data[0] == _TEXT:
                    connection.received_text(message)
                else:
                    connection.received_binary(message)
                return
        frames.feed(data)
        if self._reading and not self._resting:
            self._hear(data)
        else:
            self._hold_back()
        if not frames.waits_for_a_pong:
            self._heard_at = monotonic()  # a part of a message

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the socket is closed."""
        self._pinger.leave(self)
        super().connection_lost(exc)

    # Pinged

    def beat(self) -> None:
        """Ping the client; end the connection if the last pings have no answer.

        While the client is not read, its pong cannot be seen, and while it does not read, a ping cannot reach
        it, so neither counts then.
        """
        transport = self._transport
        connection = self._connection
        if transport is None or connection is None or self._closing or self._writing_paused:
            return
        if not self._reading:
            self._unanswered_pings = 0
        elif self._unanswered_pings >= MAX_UNANSWERED:
            logger.info("a client answers no pings: its connection counts as lost")
            self._pinger.num_lost += 1
            self._connection = None
            connection.lost()
            self._linger = Linger(transport, LINGER_S)  # the client's time is used up
            self.close(Farewell(None, *_NO_PONG))
            return
        else:
            self._unanswered_pings += 1
        transport.write(_PING)

    # SocketShell

    def _hand_on(self) -> None:
        while self._reading and self._may_go_on():
            item = self._frames.next()
            if item is None:
                return
            if isinstance(item, Other) and item.is_pong:
                self._unanswered_pings = 0  # a pong is no activity: an idle browser sends it too
                continue
            self._heard_at = monotonic()
            if isinstance(item, Other):
                self._received(item.data)
            elif self._connection is not None and not self._closing:
                self._deliver(self._connection, item.payload, item.binary)

    def _received(self, data: bytes) -> None:
        """Pass the bytes of a frame other than a whole data frame to websockets' own parser."""
        protocol = self._protocol
        protocol.receive_data(data)
        for event in protocol.events_received():
            if isinstance(event, Frame):
                self._received_frame(event)
        if protocol.parser_exc is not None:
            self._parser_failed(protocol.parser_exc)
        if protocol.writes:
            self._flush()

    def eof_received(self) -> bool:
        """Note that the client closed the socket, without a closing handshake or after it."""
        if self._opening is None:
            self._protocol.receive_eof()
            self._flush()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.lost()
        self._closing = True
        self._wait_for_the_client()  # only until it has read the sent bytes
        return False

    def pause_writing(self) -> None:
        """Note that the transport's buffer is full."""
        self._writing_paused = True
        super().pause_writing()

    def resume_writing(self) -> None:
        """Answer the latest ping, then send results again: the transport's buffer has drained."""
        self._writing_paused = False
        pong, self._pong = self._pong, b""
        if pong and self._transport is not None and not self._closing:
            self._transport.write(pong)
        super().resume_writing()

    # Peer

    def accept(self, headers: tuple[tuple[str, str], ...]) -> None:
        """Send the response that opens the WebSocket, with these headers added."""
        opening = self._opening
        if self._transport is None or self._closing or opening is None:
            return
        self._opening = None
        for name, value in headers:
            opening.headers[name] = value
        self._transport.write(opening.serialize())
        self._pinger.join(self)

    def refuse(self, refusal: Refusal) -> None:
        """Answer the request with a refusal, and close the sending side."""
        if self._transport is None or self._closing:
            return
        self._transport.write(refusal.answer())
        self._end_sending()

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
            # Nothing more can be sent to a client that has closed.
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
            # The close frame is in the protocol's queue already; messages that are still to be sent go
            # in front of it.
            self._close_frame += self._protocol.data_to_send()
            connection.received_fault(
                ClientFault(
                    ErrorCode.FRAME_TOO_LONG,
                    f"A message is longer than {self._max_frame_bytes} bytes: send shorter ones.",
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
