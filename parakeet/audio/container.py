"""Recordings in formats that need a codec: FLAC, Ogg, MP3, M4A, WebM and others, through PyAV (FFmpeg).

A client may be installed without PyAV (the package `av`): then it reads WAV alone.
"""

from __future__ import annotations

import array
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO, Any, Final

from common.mixer import Mixer
from common.options import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from parakeet.audio.byte_input import ByteInput
from parakeet.audio.errors import BadAudio
from parakeet.audio.pcm import to_bytes

_MARKS: Final = (
    (0, b"fLaC", "FLAC"),
    (0, b"OggS", "Ogg"),
    (0, b"ID3", "MP3"),
    (4, b"ftyp", "MP4"),
    (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska"),
    (0, b"FORM", "AIFF"),
    (0, b"#!AMR", "AMR"),
    (0, b".snd", "AU"),
    (0, b"caff", "CAF"),
    (0, b"riff\x2e\x91\xcf\x11", "Wave64"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "ASF"),
    (0, b"wvpk", "WavPack"),
)
HEAD_BYTES: Final = 4096
"""Bytes that `container_name` needs: one frame of MPEG audio and the head of the next."""
_MPEG_KBITS: Final = {
    # (is MPEG 1, layer): kbit/s by index
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def container_name(head: bytes) -> str | None:
    """Return the container of a recording that begins with these `HEAD_BYTES`, None for an unknown one."""
    for offset, mark, name in _MARKS:
        if head.startswith(mark, offset):
            return name
    if (size := _mpeg_frame_bytes(head)) and (len(head) <= size or _mpeg_frame_bytes(head[size:])):
        return "MP3"
    if head[:1] == b"\xff" and len(head) > 6 and head[1] & 0xF6 == 0xF0:
        size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        if size > 7 and head[size : size + 1] in (b"", b"\xff"):
            return "AAC"
    return None


def _mpeg_frame_bytes(head: bytes) -> int:
    """Return the size of the MPEG audio frame at the begin of `head` (ISO 11172-3); 0 if there is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer not in (2, 3) or bitrate in (0, 15) or rate == 3:
        return 0
    is_first = version == 3
    hertz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    bits = _MPEG_KBITS[is_first, layer][bitrate - 1] * 1000
    return (144 if is_first or layer == 2 else 72) * bits // hertz + (head[2] >> 1 & 1)


class ContainerSource:
    """The first audio stream of a recording as mono pcm16 blocks; fields as those of `WavSource`."""

    def __init__(self, data: ByteInput, kind: str) -> None:
        """Open the recording. Raises BadAudio, also where PyAV is not installed."""
        try:
            import av
        except ImportError:
            raise BadAudio(
                f"{data.name} is a recording in {kind}, which the package av reads:"
                " pip install av, or convert it to WAV."
            ) from None
        self._av: Any = av
        self._input = data
        self._kind = kind
        self._spooled: IO[bytes] | None = None
        self.problem: str | None = None
        try:
            self._container = self._open()
            self._stream = next(iter(self._container.streams.audio), None)
        except (av.error.FFmpegError, ValueError) as error:
            self.close()
            raise BadAudio(f"{data.name} cannot be read as {kind}: {_cause(error)}.") from error
        if self._stream is None or not self._stream.rate:
            self.close()
            raise BadAudio(f"{data.name} holds no audio.")
        self.rate: Final = min(max(self._stream.rate, MIN_SAMPLE_RATE), MAX_SAMPLE_RATE)

    @property
    def seconds(self) -> float | None:
        """Length in seconds, where the container states it."""
        return None if self._container.duration is None else self._container.duration / self._av.time_base

    def blocks(self) -> Iterator[bytes]:
        """Yield mono pcm16le. Raises BadAudio where nothing could be decoded."""
        assert self._stream is not None
        av = self._av
        layout = self._stream.layout
        mixer = Mixer(layout.nb_channels)
        resampler = av.AudioResampler(format="s16", layout=layout, rate=self.rate)
        decoded = False
        try:
            for frame in self._container.decode(self._stream):
                for part in resampler.resample(frame):
                    decoded = True
                    yield _mono(part, mixer)
            for part in resampler.resample(None):
                yield _mono(part, mixer)
        except av.error.FFmpegError as error:
            self.problem = f"{self._input.name} is damaged: {_cause(error)}."
            if not decoded:
                raise BadAudio(self.problem) from error

    def close(self) -> None:
        """Close the recording."""
        if (container := getattr(self, "_container", None)) is not None:
            container.close()
        if self._spooled is not None:
            self._spooled.close()
        self._input.close()

    def _open(self) -> Any:
        if not self._input.is_stdin:
            return self._av.open(self._input.name)
        if self._kind != "MP4":
            return self._av.open(_Reader(self._input))
        # The index of an MP4 file may be at its end.
        self._spooled = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the source
        shutil.copyfileobj(_Reader(self._input), self._spooled)
        self._spooled.seek(0)
        return self._av.open(self._spooled)


class _Reader:
    """A file object over an input, for a library that reads files."""

    def __init__(self, data: ByteInput) -> None:
        self._input = data

    def read(self, size: int = -1) -> bytes:
        return self._input.read(size if size > 0 else 1 << 16)


def _mono(frame: Any, mixer: Mixer) -> bytes:
    channels = frame.layout.nb_channels
    data = bytes(frame.planes[0])[: frame.samples * channels * 2]
    samples = array.array("h", data)  # FFmpeg's s16 is in this machine's order
    return to_bytes(mixer.mix(samples))


def _cause(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).rstrip(".")
