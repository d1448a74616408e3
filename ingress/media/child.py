"""The child process that decodes one input: `python -m ingress.media.child`.

It reads media from its standard input or a file. It writes one line of JSON (`rate`, `channels`) and then
16-bit samples, channels interleaved, to its standard output. It opens nothing else, and its limits are set
before a library looks at the first byte. A failure is one sentence on standard error and exit status FAILED;
samples that were decoded before it have been written.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import json
import logging
import os
import resource
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from common.mixer import PassageMixer
from ingress.media.plain_wav import HeadReader, PlainWav, plain_wav

_Samples = bytes | memoryview

FAILED: Final = 3
NO_AUDIO: Final = 4
RAW_OPUS: Final = "opus-packets"
"""Instead of a demuxer: packets of Opus, each behind its length (two bytes, big-endian)."""
RAW_SAMPLES: Final = ("s16le", "f32le", "mulaw", "alaw")
"""Demuxers of samples without a head; the parent names their rate and channels."""

# The rates of streams (common/options.py), whose import would delay the first sample.
MIN_RATE: Final = 8_000
MAX_RATE: Final = 48_000
MAX_CHANNELS: Final = 8

MAX_MEMORY_BYTES: Final = 512 << 20
"""Memory that a child may map, by default; its libraries and a WAV file take 124 MB."""

# Far more CPU time than the longest recording takes: it ends media that are made to decode for ever.
_MAX_CPU_S: Final = 900
# Files for the input, the three pipes, and the libraries.
_MAX_OPEN_FILES: Final = 32
# Live streams on the same machine have priority: the start of a decoder alone takes a third of a second.
_NICE: Final = 10
_COPY_BYTES: Final = 32 << 10
# Damaged packets that any input may have; a longer one may have more, as long as most of it is whole.
_MAX_DAMAGED_PACKETS: Final = 100
# Packets of FLAC may have 65,535 samples; one of media that lie could tell hours.
_LONGEST_PACKET_S: Final = 10
_DEMUXER_OPTIONS: Final = {"protocol_whitelist": "", "enable_drefs": "0"}
# A client may be waiting for the first samples, so the library probes no further than the head. It still
# reads 64 KiB of the samples of a WAV file that is not plain, in search of another codec.
_LIVE_OPTIONS: Final = {
    **_DEMUXER_OPTIONS,
    "probesize": "32",
    "analyzeduration": "1",
    "max_probe_packets": "1",
}


def limit_process(memory_bytes: int) -> None:
    """Bound the memory, CPU time and files that a malicious input can take."""
    # If a machine or a container runs out of memory, the kernel shall kill this process and not the ingress.
    with contextlib.suppress(OSError):  # a sandbox may forbid it, which does no other harm
        Path("/proc/self/oom_score_adj").write_text("1000")
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, _MAX_CPU_S),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(limit, (value, value))


class _Pipe:
    """A stream that can only be read, so that the library does not seek. head: bytes read from it before."""

    def __init__(self, stream: BinaryIO, head: bytes) -> None:
        self._stream = stream
        self._head = head

    def read(self, size: int) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return _read_some(self._stream, size)


def _read_some(stream: BinaryIO, size: int) -> bytes:
    """Return up to `size` bytes, as soon as some are available."""
    return stream.read1(size) if hasattr(stream, "read1") else stream.read(size)


def main(argv: Sequence[str]) -> int:
    """Decode one input; return the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--demuxer", required=True)
    parser.add_argument("--file", default="")
    parser.add_argument("--mix", action="store_true", help="one channel, the mean of all")
    parser.add_argument("--channel", type=int, help="this one of all, from 0, and no other")
    parser.add_argument("--rate", type=int, default=0, help="of what has no head; else that of the media")
    parser.add_argument("--channels", type=int, default=1, help="of what has no head")
    parser.add_argument("--memory", type=int, default=MAX_MEMORY_BYTES, help="most bytes that it may map")
    arguments = parser.parse_args(argv)
    os.nice(_NICE)
    logging.disable()
    source = open(arguments.file, "rb") if arguments.file else sys.stdin.buffer  # noqa: SIM115, PTH123
    out = sys.stdout.buffer
    reader = HeadReader(source)
    if arguments.demuxer == "wav":
        wav = plain_wav(reader, max_channels=MAX_CHANNELS, rates=range(MIN_RATE, MAX_RATE + 1))
        if wav is not None:
            limit_process(arguments.memory)
            return _copy(wav, source, out, mix=arguments.mix, only=arguments.channel)

    import av  # needs threads and files that the limits forbid later

    av.logging.set_level(av.logging.PANIC)
    limit_process(arguments.memory)
    try:
        if arguments.demuxer == RAW_OPUS:
            frames = _opus_frames(av, source, arguments.channels)
        elif arguments.file:
            source.seek(0)
            options = _DEMUXER_OPTIONS
            if arguments.demuxer in RAW_SAMPLES:
                raw = {"sample_rate": str(arguments.rate), "ch_layout": f"{arguments.channels}c"}
                options = {**options, **raw}
            frames = _media_frames(av, source, arguments.demuxer, options)
        else:
            frames = _media_frames(av, _Pipe(source, reader.head), arguments.demuxer, _LIVE_OPTIONS)
        return _write(av, frames, out, mix=arguments.mix, only=arguments.channel)
    except BrokenPipeError:
        return FAILED
    except (av.error.FFmpegError, ValueError, MemoryError, EOFError) as error:
        sys.stderr.write(f"{_reason(error)}\n")
        return FAILED


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]


def _copy(wav: PlainWav, source: BinaryIO, out: BinaryIO, *, mix: bool, only: int | None) -> int:
    """Copy samples as they come, in whole frames; return the exit status. mix, only: see `_Wanted`."""
    frame_bytes, left = wav.format.frame_bytes, wav.size
    wanted = _Wanted(wav.format.channels, mix=mix, only=only)
    rest, wrote = b"", False
    try:
        while left is None or left > 0:
            data = _read_some(source, _COPY_BYTES if left is None else min(left, _COPY_BYTES))
            if not data:
                break
            left = None if left is None else left - len(data)
            rest += data
            whole = len(rest) - len(rest) % frame_bytes
            if whole and not wrote:
                _write_header(out, wav.format.rate, 1 if mix else wav.format.channels)
                wrote = True
            out.write(wanted.of(rest[:whole]))
            out.flush()
            rest = rest[whole:]
        out.write(wanted.rest())
        out.flush()
    except BrokenPipeError:
        return FAILED
    return 0 if wrote else NO_AUDIO


def _write_header(out: BinaryIO, rate: int, channels: int) -> None:
    out.write(json.dumps({"rate": rate, "channels": channels}).encode() + b"\n")


class _Wanted:
    """From interleaved 16-bit samples to the wanted ones.

    mix: all channels become one; otherwise the one channel `only`, or all channels for None.
    """

    def __init__(self, channels: int, *, mix: bool, only: int | None) -> None:
        self._channels = channels
        self._only = only
        self._mixer = PassageMixer(channels) if mix and channels > 1 else None

    def of(self, samples: _Samples) -> _Samples:
        """Return what is wanted of the next samples; a mix may keep some of them."""
        if self._mixer is not None:
            return self._mixer.mix(array.array("h", bytes(samples))).tobytes()
        if self._only is not None:
            return memoryview(bytes(samples)).cast("h")[self._only :: self._channels].tobytes()
        return samples

    def rest(self) -> bytes:
        """Return what was kept, at the end of the samples."""
        kept = None if self._mixer is None else self._mixer.end_passage()
        return b"" if kept is None else kept.tobytes()


def _media_frames(av: Any, stream: BinaryIO | _Pipe, demuxer: str, options: dict[str, str]) -> Iterator[Any]:
    # Tags that are not UTF-8 do not matter here. From version 19 on, PyAV always reads tags.
    lenient = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
    with av.open(stream, mode="r", format=demuxer, options=options, **lenient) as container:
        if not container.streams.audio:
            raise ValueError("The media has no audio.")
        audio = container.streams.audio[0]
        audio.codec_context.thread_count = 1
        yield from _decoded(av, container.demux(audio), audio.codec_context)


def _decoded(av: Any, packets: Iterable[Any], codec: Any) -> Iterator[Any]:
    """Yield the frames of packets. In place of a damaged packet there is silence, so that times stay right.

    Raises the library's error where most of the input is damaged: that is no media.
    """
    damaged = whole = 0
    lost: list[Any] = []  # packets before the next frame, which says what silence is like
    packet_samples = 0
    template = None
    for packet in packets:
        try:
            frames = codec.decode(packet)
        except MemoryError:
            raise
        except av.error.FFmpegError:  # the AAC decoder has other errors than `InvalidDataError` for damage
            damaged += 1
            if damaged > max(_MAX_DAMAGED_PACKETS, whole):
                raise
            lost.append(packet)
        else:
            whole += 1
            if not frames:
                continue
            template, packet_samples = frames[0], sum(frame.samples for frame in frames)
            yield from _silences(av, lost, template, packet_samples)
            lost.clear()
            yield from frames
    if template is not None:
        yield from _silences(av, lost, template, packet_samples)


def _silences(av: Any, packets: Iterable[Any], template: Any, packet_samples: int) -> Iterator[Any]:
    """Yield a frame of silence, in the form of another frame, for each packet.

    packet_samples: samples of a packet whose duration the container does not tell.
    """
    for packet in packets:
        samples = packet_samples
        if packet.duration and packet.time_base:
            told = round(packet.duration * packet.time_base * template.sample_rate)
            if 0 < told <= _LONGEST_PACKET_S * template.sample_rate:
                samples = told
        frame = av.AudioFrame(template.format.name, template.layout.name, samples)
        frame.sample_rate = template.sample_rate
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        yield frame


def _opus_frames(av: Any, source: BinaryIO, channels: int) -> Iterator[Any]:
    codec = av.CodecContext.create("opus", "r")
    codec.sample_rate = 48_000
    codec.layout = "mono" if channels == 1 else "stereo"
    yield from _decoded(av, _opus_packets(av, source), codec)


def _opus_packets(av: Any, source: BinaryIO) -> Iterator[Any]:
    while head := source.read(2):
        if len(head) < 2:
            raise EOFError("An Opus packet is cut off.")
        (length,) = struct.unpack(">H", head)
        data = source.read(length)
        if len(data) < length:
            raise EOFError("An Opus packet is cut off.")
        if length:
            yield av.Packet(data)


def _write(av: Any, frames: Iterator[Any], out: BinaryIO, *, mix: bool, only: int | None) -> int:
    resampler = None
    wrote = False
    wanted = _Wanted(1, mix=mix, only=None)
    try:
        for frame in frames:
            if resampler is None:
                rate = min(MAX_RATE, max(MIN_RATE, frame.sample_rate))
                channels = len(frame.layout.channels)
                if channels > MAX_CHANNELS:
                    raise ValueError(f"The media has {channels} channels, but {MAX_CHANNELS} are the most.")
                # The library would mix channels by their places around a listener, and one that is another
                # upside down would silence it.
                resampler = av.AudioResampler(format="s16", layout=frame.layout, rate=rate)
                wanted = _Wanted(channels, mix=mix, only=only)
                _write_header(out, rate, 1 if mix else channels)
            for part in resampler.resample(frame):
                wrote = True
                out.write(wanted.of(_samples(part)))
            out.flush()
    finally:
        if resampler is not None:
            for part in resampler.resample(None):
                wrote = True
                out.write(wanted.of(_samples(part)))
            out.write(wanted.rest())
            out.flush()
    return 0 if wrote else NO_AUDIO


def _samples(frame: Any) -> memoryview:
    """Return the samples of a packed 16-bit frame, without the padding after them."""
    return memoryview(frame.planes[0])[: 2 * frame.samples * len(frame.layout.channels)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
