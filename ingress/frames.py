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
_WHOLE: Final = (_TEXT, _BINARY)
_MASKED: Final = 0x80
# A masked frame whose length takes two bytes (126 to 65,535): its second byte, and its header's size.
_MASKED_LONG: Final = _MASKED | 126
_LONG_HEADER: Final = 8


_HEADER_16 = Struct(">BBH").pack


def text_frame(payload: bytes) -> bytes:
    """One whole text frame (RFC 6455, section 5.2), not masked, as servers send them."""
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
    """The bytes of one frame for the general parser; or, where it is bound to refuse them, all bytes
    from there on."""

    data: bytes


class FrameReader:
    """Cuts received bytes into messages and other frames, in order.

    max_payload_bytes: a longer frame is handed on as soon as its header is there. At most such a frame
        and its header are held.
    """

    __slots__ = ("_fragmented", "_held", "_max", "_needed", "_refused")

    def __init__(self, max_payload_bytes: int) -> None:
        self._max = max_payload_bytes
        self._held = bytearray()
        self._needed = 0
        self._fragmented = False
        self._refused = False

    def whole_text(self, data: bytes) -> bytes | None:
        """The payload where `data` is one text frame of some length, no more and no less, as nearly
        every read is; None for anything else, which `feed` takes."""
        if len(data) < _LONG_HEADER or data[0] != _TEXT or data[1] != _MASKED_LONG or self._held:
            return None
        length = (data[2] << 8) | data[3]
        if len(data) != length + _LONG_HEADER or length > self._max or self._fragmented or self._refused:
            return None
        return apply_mask(data[_LONG_HEADER:], data[4:_LONG_HEADER])

    def feed(self, data: bytes) -> list[Message | Other]:
        """Take bytes from the peer and return what they complete."""
        if self._refused:
            return [Other(data)]
        if self._held:
            self._held += data
            if len(self._held) < self._needed:
                return []
            data = bytes(self._held)
            self._held.clear()
        found: list[Message | Other] = []
        at, end = 0, len(data)
        while at < end:
            size = self._frame_at(data, at, end, found)
            if size == 0:
                self._held += memoryview(data)[at:]
                break
            at += size
        return found

    def _frame_at(self, data: bytes, at: int, end: int, found: list[Message | Other]) -> int:
        """Take the frame that begins at `at`; its size, or 0 where it is not complete."""
        self._needed = 2
        if end - at < 2:
            return 0
        first, second = data[at], data[at + 1]
        length = second & 0x7F
        start = at + 2
        if length >= 126:
            width = 2 if length == 126 else 8
            start += width
            if end < start:
                self._needed = start - at
                return 0
            length = int.from_bytes(data[at + 2 : start])
        if length > self._max or not second & _MASKED or first & 0x70:
            self._refused = True
            found.append(Other(data[at:]))
            return end - at
        body = start + 4
        stop = body + length
        if end < stop:
            self._needed = stop - at
            return 0
        if first in _WHOLE and not self._fragmented:
            found.append(Message(apply_mask(data[body:stop], data[start:body]), first == _BINARY))
        else:
            if not first & 0x08:  # no control frame: a message begins, goes on or ends
                self._fragmented = not first & 0x80
            found.append(Other(data[at:stop]))
        return stop - at
