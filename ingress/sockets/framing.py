"""Newline-delimited JSON framing: bytes in, whole lines out, memory bounded by the longest line allowed.

The lines that come out do not depend on how the bytes were cut on the way (tests/property).
"""

from __future__ import annotations


class LineReader:
    """Holds received bytes and cuts them into lines without their newline, one line a call.

    The caller may stop in the middle of the bytes of one read; the rest stays as it came. Blank lines are
    keep-alives, and are skipped.

    max_line_bytes: longest line, its newline not counted. A longer line sets `too_long`, after which no lines
        are returned any more: the reader does not look for the next one.
    """

    __slots__ = ("_held", "_max", "_searched", "too_long")

    def __init__(self, max_line_bytes: int) -> None:
        self._max = max_line_bytes
        self._held = bytearray()
        self._searched = 0  # no newline is before this index
        self.too_long = False

    def whole(self, data: bytes) -> bytes | None:
        """Return the line if `data` is exactly one line, as nearly every read is.

        Returns None for other data, which `feed` takes.
        """
        end = len(data) - 1
        if self._held or self.too_long or not 1 < end <= self._max or data.find(b"\n") != end:
            return None
        return data[:-1]

    def feed(self, data: bytes) -> None:
        """Take bytes from the peer."""
        if not self.too_long:
            self._held += data

    def next(self) -> bytes | None:
        """Return the next whole line, or None if none is complete yet."""
        held = self._held
        while True:
            end = held.find(b"\n", self._searched)
            if (len(held) if end < 0 else end) > self._max:
                self.too_long = True
                held.clear()
                return None
            if end < 0:
                self._searched = len(held)
                return None
            line = bytes(held[:end])
            del held[: end + 1]
            self._searched = 0
            if line and line != b"\r":
                return line

    def rest(self) -> bytes | None:
        """Return the bytes after the last newline as a line: the peer will send no more."""
        line = bytes(self._held)
        self._held.clear()
        self._searched = 0
        return None if line in (b"", b"\r") else line
