"""WAV files whose samples need no codec: 16-bit, little-endian.

Most recordings are such files. They need no library, whose loading takes a third of a second, and from a pipe
the first sample comes at once, where FFmpeg reads 64 KiB in search of another codec.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO, Final

from common.wav_head import BadWav, WavFormat, read_wav_head

# Tags and pictures may precede the samples. The library reads files that have more bytes of them.
_MAX_HEAD_BYTES: Final = 64 << 10


class _HeadTooLong(Exception):  # noqa: N818 - the name says it
    """The samples do not begin within the bytes that are kept."""


class HeadReader:
    """Reads the beginning of an input and keeps it. head: the bytes read."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self.head = b""

    def read_exactly(self, size: int) -> bytes:
        """Return `size` bytes; fewer only at the end. Raises _HeadTooLong."""
        if len(self.head) + size > _MAX_HEAD_BYTES:
            raise _HeadTooLong
        data = self._source.read(size)
        self.head += data
        return data

    def skip(self, size: int) -> None:
        """Read `size` bytes that are not needed. Raises _HeadTooLong."""
        self.read_exactly(size)


@dataclass(frozen=True, slots=True)
class PlainWav:
    """Samples after the head. size: in bytes, None where they go to the end of the input."""

    format: WavFormat
    size: int | None


def plain_wav(source: HeadReader, *, max_channels: int, rates: range) -> PlainWav | None:
    """Read the head of a WAV file; return None where it is not plain.

    max_channels, rates: bounds of accepted samples; rates in Hz.
    """
    try:
        format_, size = read_wav_head(source, "The media")
    except (BadWav, _HeadTooLong):
        return None
    plain = (
        format_.kind == "integer"
        and format_.sample_bytes == 2
        and not format_.big_endian
        and format_.channels <= max_channels
        and format_.rate in rates
    )
    return PlainWav(format_, size) if plain else None
