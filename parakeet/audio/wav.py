"""WAV files as they are written in the world; Python's `wave` takes others with every version.

RIFF, RIFX and RF64/BW64; integers of 8 to 64 bits, floats, A-law, mu-law, plain or EXTENSIBLE; any number of
channels. Programs that write to a pipe do not know the size of their data, and say 0, 0xFFFFFFFF or some
number near two gigabytes: then it goes to the end. (Multimedia Programming Interface and Data Specifications
1.0; EBU Tech 3306 for RF64.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from parakeet.audio.byte_input import ByteInput
from parakeet.audio.errors import BadAudio
from parakeet.audio.pcm import Mixer, RateFit, SampleKind, from_bytes, to_bytes

_KINDS: Final[dict[int, SampleKind]] = {1: "integer", 3: "float", 6: "alaw", 7: "mulaw"}
_EXTENSIBLE: Final = 0xFFFE
# Behind the format's number in the identifier of an EXTENSIBLE format.
_GUID_TAIL: Final = bytes.fromhex("000000001000800000aa00389b71")
_MAX_FORMAT_BYTES: Final = 1 << 16
# From here on, a size is what a program writes that does not know it.
_UNKNOWN_SIZE: Final = 0x7FFFF000
_BLOCK_S: Final = 0.25
MARKS: Final = (b"RIFF", b"RIFX", b"RF64", b"BW64")


class UnknownWavFormat(BadAudio):
    """A WAV file whose samples are compressed in a way that only a codec reads."""


@dataclass(frozen=True, slots=True)
class WavFormat:
    """What stands in a `fmt ` chunk. sample_bytes: of one sample of one channel."""

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
    """Whether bytes (12 of them) begin a WAV file."""
    return head[:4] in MARKS and head[8:12] == b"WAVE"


def parse_format(data: bytes, name: str, *, big_endian: bool) -> WavFormat:
    """Read a `fmt ` chunk. Raises BadAudio, UnknownWavFormat."""
    order = ">" if big_endian else "<"
    if len(data) < 14:
        raise BadAudio(f"{name} is a damaged WAV file: its format takes {len(data)} bytes.")
    tag, channels, rate, _, frame_bytes = struct.unpack_from(f"{order}HHIIH", data)
    if tag == _EXTENSIBLE and len(data) >= 40 and data[26:40] == _GUID_TAIL:
        (tag,) = struct.unpack_from(f"{order}H", data, 24)
    kind = _KINDS.get(tag)
    if kind is None:
        raise UnknownWavFormat(f"{name} is a WAV file in a compressed format (number {tag:#06x}).")
    sample_bytes, rest = divmod(frame_bytes, channels) if channels else (0, 1)
    widths = {"integer": range(1, 9), "float": (4, 8), "alaw": (1,), "mulaw": (1,)}[kind]
    if rest or sample_bytes not in widths or not rate:
        raise BadAudio(
            f"{name} is a damaged WAV file: {channels} channels, {frame_bytes} bytes a sample of all of them,"
            f" {rate} samples a second."
        )
    return WavFormat(kind, channels, rate, sample_bytes, big_endian)


class WavSource:
    """The samples of one WAV file as mono pcm16 blocks.

    rate: of the blocks, Hz.   seconds: as the file says, None where it does not.
    problem: after the last block, what was wrong with the file all the same; None for nothing.
    """

    def __init__(self, data: ByteInput) -> None:
        """Read up to the samples. Raises BadAudio, and UnknownWavFormat with nothing but the head read."""
        self._input = data
        self.problem: str | None = None
        self._format, self._size = self._read_head()
        self._fit = RateFit(self._format.rate)
        self.rate: Final = self._fit.rate

    @property
    def seconds(self) -> float | None:
        """Length, where the head or the size of the file tells it."""
        size = self._size if self._size is not None else self._input.bytes_left
        return None if size is None else size / self._format.frame_bytes / self._format.rate

    def blocks(self) -> Iterator[bytes]:
        """Yield mono pcm16le; blocks while a pipe is silent. Raises BadAudio."""
        format_, mixer = self._format, Mixer(self._format.channels)
        block_bytes = max(1, int(format_.rate * _BLOCK_S)) * format_.frame_bytes
        left = self._size
        got = 0
        rest = b""
        while left is None or got < left:
            wanted = block_bytes - len(rest)
            data = self._input.read(wanted if left is None else min(wanted, left - got))
            if not data:
                break
            got += len(data)
            rest += data
            # A file's blocks are whole, so that they do not depend on how it was read.
            if self._input.bytes_left and len(rest) < block_bytes and (left is None or got < left):
                continue
            whole = len(rest) - len(rest) % format_.frame_bytes
            data, rest = rest[:whole], rest[whole:]
            samples = from_bytes(data, format_.kind, format_.sample_bytes, big_endian=format_.big_endian)
            yield to_bytes(self._fit.fit(mixer.mix(samples)))
        if left is not None and got < left:
            frames_a_second = format_.frame_bytes * format_.rate
            self.problem = (
                f"{self._input.name} is not whole: its header says {left / frames_a_second:.2f} s,"
                f" and {got / frames_a_second:.2f} s are there."
            )

    def close(self) -> None:
        """Close the file."""
        self._input.close()

    def _read_head(self) -> tuple[WavFormat, int | None]:
        name = self._input.name
        head = self._input.read_exactly(12)
        big_endian = head[:4] == b"RIFX"
        order = ">" if big_endian else "<"
        format_: WavFormat | None = None
        long_size: int | None = None
        while len(chunk := self._input.read_exactly(8)) == 8:
            mark, size = chunk[:4], struct.unpack(f"{order}I", chunk[4:])[0]
            if mark == b"data":
                if format_ is None:
                    raise BadAudio(f"{name} is a damaged WAV file: its samples come before their format.")
                if size == 0xFFFFFFFF and long_size:
                    return format_, long_size
                return format_, None if size == 0 or size >= _UNKNOWN_SIZE else size
            padded = size + size % 2
            if mark not in (b"fmt ", b"ds64"):
                self._input.skip(padded)
                continue
            data = self._input.read_exactly(min(padded, _MAX_FORMAT_BYTES))
            self._input.skip(padded - len(data))
            if mark == b"fmt ":
                format_ = parse_format(data[:size], name, big_endian=big_endian)
            elif len(data) >= 16:
                long_size = struct.unpack_from("<Q", data, 8)[0]
        raise BadAudio(f"{name} is a damaged WAV file: it ends before its samples.")
