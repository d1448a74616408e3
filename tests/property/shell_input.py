"""What tests feed to the shell of a socket: data cut anywhere, and a transport that keeps what is written."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence


def cut(data: bytes, sizes: Sequence[int]) -> list[bytes]:
    """Return `data` in pieces of these sizes, and what is left as the last one."""
    parts, at = [], 0
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    return [part for part in (*parts, data[at:]) if part]


class RecordingTransport(asyncio.Transport):
    """Takes what is written; reads on whatever it is asked."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 4711), "sockname": ("192.0.2.2", 8000)})
        self.written = b""
        self.ended = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is buffered."""

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.ended

    def pause_reading(self) -> None:
        """What was cut is fed anyway."""

    def resume_reading(self) -> None:
        """What was cut is fed anyway."""
