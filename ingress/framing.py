"""Newline-delimited JSON framing: bytes in, whole lines out, memory bounded by the longest line allowed.

The lines that come out do not depend on how the bytes were cut on the way (tests/property).
"""

from __future__ import annotations


class LineReader:
    """Cuts received bytes into lines without their newline; blank lines are keep-alives and skipped.

    max_line_bytes: longest line, its newline not counted. A longer one sets `too_long`, after which
        nothing comes out any more: where the next line begins is no longer worth knowing.
    """

    __slots__ = ("_max", "_tail", "too_long")

    def __init__(self, max_line_bytes: int) -> None:
        self._max = max_line_bytes
        self._tail = bytearray()
        self.too_long = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes from the peer and return the lines that they complete, in order."""
        if self.too_long:
            return []
        lines = data.split(b"\n")
        rest = lines.pop()
        if self._tail:
            if not lines:
                self._keep(rest)
                return []
            self._tail += lines[0]
            lines[0] = bytes(self._tail)
            self._tail.clear()
        whole: list[bytes] = []
        for line in lines:
            if len(line) > self._max:
                self.too_long = True
                return whole
            if line and line != b"\r":
                whole.append(line)
        self._keep(rest)
        return whole

    def finish(self) -> list[bytes]:
        """Return what stands after the last newline, as a line: the peer will send no more."""
        line = bytes(self._tail)
        self._tail.clear()
        return [] if self.too_long or line in (b"", b"\r") else [line]

    @property
    def held_bytes(self) -> int:
        """Bytes of the line that is not complete yet."""
        return len(self._tail)

    def _keep(self, rest: bytes) -> None:
        self._tail += rest
        if len(self._tail) > self._max:
            self.too_long = True
            self._tail.clear()
