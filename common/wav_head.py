"""Reader of the head of a WAV file, which precedes its samples, in the variants that programs write.

RIFF, RIFX and RF64/BW64; integers of 8 to 64 bits, floats, A-law, mu-law, plain or EXTENSIBLE. Programs that
write to a pipe do not know the size of their data, and write 0, 0xFFFFFFFF or a number near two gigabytes:
then the data is taken to go to the end. (Multimedia Programming Interface and Data Specifications 1.0; EBU
Tech 3306 for RF64.)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from common.errors import ServiceError

SampleKind = Literal["integer", "float", "alaw", "mulaw"]

MARKS: Final = (b"RIFF", b"RIFX", b"RF64", b"BW64")
_KINDS: Final[dict[int, SampleKind]] = {1: "integer", 3: "float", 6: "alaw", 7: "mulaw"}
_WIDTHS: Final = {"integer": range(1, 9), "float": (4, 8), "alaw": (1,), "mulaw": (1,)}
_EXTENSIBLE: Final = 0xFFFE
# The bytes after the format's number in the identifier of an EXTENSIBLE format.
_GUID_TAIL: Final = bytes.fromhex("000000001000800000aa00389b71")
_MAX_FORMAT_BYTES: Final = 1 << 16
# A size from here on means that the program did not know the size.
_UNKNOWN_SIZE: Final = 0x7FFFF000


class BadWav(ServiceError):  # noqa: N818 - the name says it
    """A WAV file that is damaged before its samples."""


class UnknownWavFormat(BadWav):
    """A WAV file whose samples are compressed in a way that only a codec reads."""


class HeadInput(Protocol):
    """The input that a head is read from."""

    def read_exactly(self, size: int) -> bytes:
        """Return `size` bytes; fewer only at the end."""

    def skip(self, size: int) -> None:
        """Read `size` bytes and discard them."""


@dataclass(frozen=True, slots=True)
class WavFormat:
    """The contents of a `fmt ` chunk. sample_bytes: bytes of one sample of one channel."""

    kind: SampleKind
    channels: int
    rate: int
    sample_bytes: int
    big_endian: bool

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * self.sample_bytes


def is_wav(head: bytes) -> bool:
    """Whether these 12 bytes begin a WAV file."""
    return head[:4] in MARKS and head[8:12] == b"WAVE"


def parse_format(data: bytes, name: str, *, big_endian: bool) -> WavFormat:
    """Parse a `fmt ` chunk. Raises BadWav, UnknownWavFormat."""
    order = ">" if big_endian else "<"
    if len(data) < 14:
        raise BadWav(f"{name} is a damaged WAV file: its format takes {len(data)} bytes.")
    tag, channels, rate, _, frame_bytes = struct.unpack_from(f"{order}HHIIH", data)
    if tag == _EXTENSIBLE and len(data) >= 40 and data[26:40] == _GUID_TAIL:
        (tag,) = struct.unpack_from(f"{order}H", data, 24)
    kind = _KINDS.get(tag)
    if kind is None:
        raise UnknownWavFormat(f"{name} is a WAV file in a compressed format (number {tag:#06x}).")
    sample_bytes, rest = divmod(frame_bytes, channels) if channels else (0, 1)
    if rest or sample_bytes not in _WIDTHS[kind] or not rate:
        raise BadWav(
            f"{name} is a damaged WAV file: {channels} channels, {frame_bytes} bytes a sample of all of them,"
            f" {rate} samples a second."
        )
    return WavFormat(kind, channels, rate, sample_bytes, big_endian)


def read_wav_head(data: HeadInput, name: str) -> tuple[WavFormat, int | None]:
    """Read up to the samples; return their format and size in bytes, None if they go to the end.

    name: the file's name for error messages. Raises BadWav, UnknownWavFormat.
    """
    head = data.read_exactly(12)
    big_endian = head[:4] == b"RIFX"
    order = ">" if big_endian else "<"
    format_: WavFormat | None = None
    long_size: int | None = None
    while len(chunk := data.read_exactly(8)) == 8:
        mark, size = chunk[:4], struct.unpack(f"{order}I", chunk[4:])[0]
        if mark == b"data":
            if format_ is None:
                raise BadWav(f"{name} is a damaged WAV file: its samples come before their format.")
            if size == 0xFFFFFFFF and long_size:
                return format_, long_size
            return format_, None if size == 0 or size >= _UNKNOWN_SIZE else size
        padded = size + size % 2
        if mark not in (b"fmt ", b"ds64"):
            data.skip(padded)
            continue
        body = data.read_exactly(min(padded, _MAX_FORMAT_BYTES))
        data.skip(padded - len(body))
        if mark == b"fmt ":
            format_ = parse_format(body[:size], name, big_endian=big_endian)
        elif len(body) >= 16:
            long_size = struct.unpack_from("<Q", body, 8)[0]
    raise BadWav(f"{name} is a damaged WAV file: it ends before its samples.")
