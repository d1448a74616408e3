"""A fast parser, without I/O, of whole, masked data frames, the WebSocket frames of nearly all traffic.

websockets' parser is a generator that builds several objects for every frame, which took a fifth of an
ingress's time. Here a whole text or binary frame costs a header check and one unmasking. Every other frame
(control, fragmented, unmasked, with reserved bits, too long) goes to that parser as it came, so RFC 6455 is
enforced in one place only.
"""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple

try:
    from websockets.speedups import apply_mask
except ImportError:
    from websockets.utils import apply_mask

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


_HEADER_16 = Struct(">BBH").pack


def text_frame(payload: bytes) -> bytes:
    """Return one whole text frame (RFC 6455, section 5.2), not masked, as a server's frames have to be."""
    size = len(payload)
    if size < 126:
        return bytes((_TEXT, size)) + payload
    if size < 65536:
        return _HEADER_16(_TEXT, 126, size) + payload
    return b"\x81\x7f" + size.to_bytes(8) + payload


def is_text(data: bytes) -> bool:
    """Return whether a frame that `FrameReader.whole` accepted is a text frame."""
    return data[0] == _TEXT


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

        Returns None for other data, which `feed` takes. `is_text` says which of the two frames it is.
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
