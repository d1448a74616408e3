"""Recordings in the containers and codecs that people have."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any, Final

import av

ENCODINGS: Final[dict[str, tuple[str, str, int]]] = {
    # name: container, codec, rate (0: that of the recording)
    "wav": ("wav", "pcm_s16le", 0),
    "wav24": ("wav", "pcm_s24le", 44_100),
    "flac": ("flac", "flac", 0),
    "mp3": ("mp3", "libmp3lame", 44_100),
    "ogg": ("ogg", "libopus", 48_000),
    "webm": ("webm", "libopus", 48_000),
    "m4a": ("mp4", "aac", 44_100),
    "aac": ("adts", "aac", 16_000),
}
LOSSLESS: Final = ("wav", "flac")


def read_pcm(path: Path) -> tuple[int, bytes]:
    """Return rate and 16-bit samples of a mono WAV file."""
    with wave.open(str(path)) as recording:
        return recording.getframerate(), recording.readframes(recording.getnframes())


def encode(pcm: bytes, rate: int, name: str, folder: Path, *, layout: str = "mono") -> Path:
    """Write 16-bit mono samples as `name` of ENCODINGS; return the file."""
    container_name, codec, rate_out = ENCODINGS[name]
    path = folder / f"recording.{name}"
    with av.open(str(path), "w", format=container_name) as container:
        stream: Any = container.add_stream(codec, rate=rate_out or rate)
        stream.layout = layout
        context = stream.codec_context
        frame = av.AudioFrame(format="s16", layout="mono", samples=len(pcm) // 2)
        frame.planes[0].update(pcm)
        frame.sample_rate = rate
        resampler = av.AudioResampler(
            format=context.format, layout=layout, rate=rate_out or rate, frame_size=context.frame_size or None
        )
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def opus_packets(pcm: bytes, rate: int) -> list[bytes]:
    """Return mono samples as packets of Opus, 20 ms each."""
    codec: Any = av.CodecContext.create("libopus", "w")
    codec.sample_rate = 48_000
    codec.layout = "mono"
    codec.format = "s16"
    codec.open()
    frame = av.AudioFrame(format="s16", layout="mono", samples=len(pcm) // 2)
    frame.planes[0].update(pcm)
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="s16", layout="mono", rate=48_000, frame_size=codec.frame_size)
    packets = []
    for part in (*resampler.resample(frame), *resampler.resample(None), None):
        packets += [bytes(packet) for packet in codec.encode(part)]
    return packets
