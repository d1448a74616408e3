"""Bytes of a file or of stdin, with look-ahead."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Final, Self

from parakeet.audio.errors import BadAudio

STDIN: Final = "-"


class ByteInput:
    """Reads a path, or stdin where it is `-`. Blocks; a pipe's bytes come as they are written.

    Raises BadAudio where there is nothing to read.
    """

    def __init__(self, path: str | Path) -> None:
        self.is_stdin: Final = str(path) == STDIN
        self.name: Final = "stdin" if self.is_stdin else str(path)
        try:
            descriptor = sys.stdin.fileno() if self.is_stdin else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadAudio(f"{self.name} cannot be opened: {error.strerror}.") from error
        self._descriptor = descriptor
        self._ahead = b""
        self._read_bytes = 0
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self.close()
            raise BadAudio(f"{self.name} is a folder, and no recording.")
        self._size = status.st_size if stat.S_ISREG(status.st_mode) else None

    @property
    def bytes_left(self) -> int | None:
        """Number of bytes not read yet; None where it is unknown, as in a pipe."""
        return None if self._size is None else max(0, self._size - self._read_bytes)

    def peek(self, size: int) -> bytes:
        """Return the next bytes without consuming them; fewer than `size` only at the end."""
        while len(self._ahead) < size and (more := self._read(size - len(self._ahead))):
            self._ahead += more
        return self._ahead[:size]

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, as soon as some are available; none at the end."""
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        data = data or self._read(size)
        self._read_bytes += len(data)
        return data

    def read_exactly(self, size: int) -> bytes:
        """Return `size` bytes; fewer only at the end."""
        data = b""
        while len(data) < size and (more := self.read(size - len(data))):
            data += more
        return data

    def skip(self, size: int) -> None:
        """Read and discard bytes."""
        while size > 0 and (skipped := self.read(min(size, 1 << 16))):
            size -= len(skipped)

    def close(self) -> None:
        """Close the file; stdin stays open."""
        if not self.is_stdin and self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _read(self, size: int) -> bytes:
        try:
            return os.read(self._descriptor, size)
        except OSError as error:
            raise BadAudio(f"{self.name} cannot be read: {error.strerror}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
