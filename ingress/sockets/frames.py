"""The WebSocket frames that carry nearly all traffic, without I/O: whole, masked text and binary ones.

websockets' parser is a generator that builds several objects for every frame; that was a fifth of an
ingress's work. Here a whole frame costs a header check and one unmasking, and every frame that is
anything else (control, fragmented, unmasked, with reserved bits, too long) goes to that parser as it
came, so RFC 6455 is judged in one place only.
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
    """One whole text frame (RFC 6455, section 5.2), not masked, as servers send them."""
    size = len(payload)
    if size < 126:
        return bytes((_TEXT, size)) + payload
    if size < 65536:
        return _HEADER_16(_TEXT, 126, size) + payload
    return b"\x81\x7f" + size.to_bytes(8) + payload


def is_text(data: bytes) -> bool:
    """Whether what `FrameReader.whole` takes is a text frame."""
    return data[0] == _TEXT


class Message(NamedTuple):
    """The payload of one whole message."""

    payload: bytes
    binary: bool


class Other(NamedTuple):
    """The bytes of one frame for the general parser, or all bytes from there on where it has to refuse."""

    data: bytes
    is_pong: bool = False  # as RFC 6455 allows it


class FrameReader:
    """Holds received bytes and cuts them into messages and other frames, in order, one a call.

    So whoever takes the frames may stop in the middle of what one read brought; the rest stays as it came.

    max_payload_bytes: a longer frame is handed on as soon as its header is there. Apart from bytes that wait
        to be taken, at most such a frame and its header are held.
    """

    __slots__ = ("_fragmented", "_held", "_max", "_needed", "_refused")

    def __init__(self, max_payload_bytes: int) -> None:
        self._max = max_payload_bytes
        self._held = bytearray()
        self._needed = _SHORT_HEADER  # bytes, at least, up to the end of the frame that is held first
        self._fragmented = False
        self._refused = False

    def whole(self, data: bytes) -> bytes | None:
        """Return the payload where `data` is one text or binary frame of some length, as nearly each read is.

        Returns None for anything else, which `feed` takes. `is_text` tells which of the two it is.
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
        """Whether nothing is held but the beginning of a pong, or nothing at all."""
        return not self._held or self._held[0] == _PONG

    def next(self) -> Message | Other | None:
        """Return the next message or other frame, or None where there is no whole one yet."""
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
