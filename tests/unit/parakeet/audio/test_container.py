"""Recordings that need a codec, made and read by PyAV; and the sentence without it."""

from __future__ import annotations

import array
import math
import os
import sys
import threading
from pathlib import Path
from typing import Any

import av
import pytest

from parakeet.audio.container import HEAD_BYTES, container_name
from parakeet.audio.errors import BadAudio
from parakeet.audio.source import RawSource, open_source

KINDS = [
    # file name, codec, rate, name of the container
    ("a.flac", "flac", 16_000, "FLAC"),
    ("a.ogg", "libopus", 48_000, "Ogg"),
    ("a.mp3", "libmp3lame", 22_050, "MP3"),
    ("a.m4a", "aac", 16_000, "MP4"),
    ("a.webm", "libopus", 48_000, "WebM or Matroska"),
    ("a.aac", "aac", 16_000, "AAC"),
    ("a.aiff", "pcm_s16be", 16_000, "AIFF"),
]


def record(path: Path, codec: str, rate: int, *, seconds: float = 1.0, layout: str = "mono") -> Path:
    """Write a tone of 400 Hz; a second channel is the first one upside down."""
    num = int(rate * seconds)
    tone = [round(9000 * math.sin(2 * math.pi * 400 * n / rate)) for n in range(num)]
    samples = tone if layout == "mono" else [one for sample in tone for one in (sample, -sample)]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame("s16", layout, num)
        frame.planes[0].update(array.array("h", samples).tobytes().ljust(frame.planes[0].buffer_size, b"\0"))
        frame.sample_rate = rate
        resampler = av.AudioResampler(
            format=stream.codec_context.format, layout=layout, rate=rate, frame_size=stream.frame_size or 0
        )
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def strength(samples: array.array[int], hertz: float, rate: int) -> float:
    """Amplitude of a tone in samples."""
    real = sum(sample * math.cos(2 * math.pi * hertz * n / rate) for n, sample in enumerate(samples))
    imaginary = sum(sample * math.sin(2 * math.pi * hertz * n / rate) for n, sample in enumerate(samples))
    return 2 * math.hypot(real, imaginary) / len(samples)


@pytest.mark.parametrize(("name", "codec", "rate", "kind"), KINDS)
def test_each_kind_is_known_by_its_first_bytes_and_read(
    name: str, codec: str, rate: int, kind: str, tmp_path: Path
) -> None:
    path = record(tmp_path / name, codec, rate)
    assert container_name(path.read_bytes()[:HEAD_BYTES]) == kind
    source = open_source(path)
    samples = array.array("h", b"".join(source.blocks()))
    source.close()
    assert source.problem is None
    assert len(samples) / source.rate == pytest.approx(1.0, abs=0.1)
    assert strength(samples, 400, source.rate) == pytest.approx(9000, rel=0.2)


@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.m4a"])
def test_from_a_pipe(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, rate = next((codec, rate) for file, codec, rate, _ in KINDS if file == name)
    content = record(tmp_path / name, codec, rate).read_bytes()
    reader, writer = os.pipe()

    def write() -> None:
        with os.fdopen(writer, "wb") as out:
            out.write(content)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reader, "rb") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        source = open_source("-")
        samples = array.array("h", b"".join(source.blocks()))
        source.close()
    thread.join()
    assert strength(samples, 400, source.rate) == pytest.approx(9000, rel=0.2)


def test_a_channel_upside_down_is_heard(tmp_path: Path) -> None:
    source = open_source(record(tmp_path / "a.flac", "flac", 16_000, layout="stereo"))
    samples = array.array("h", b"".join(source.blocks()))
    source.close()
    assert strength(samples, 400, source.rate) == pytest.approx(9000, rel=0.05)


def test_a_damaged_recording_gives_what_was_there_and_says_so(tmp_path: Path) -> None:
    path = record(tmp_path / "a.flac", "flac", 16_000, seconds=4.0)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    source = open_source(path)
    samples = array.array("h", b"".join(source.blocks()))
    source.close()
    assert 1.0 < len(samples) / 16_000 < 3.0

    path.write_bytes(b"fLaC" + bytes(5000))
    with pytest.raises(BadAudio, match=r"cannot be read as FLAC|holds no audio|is damaged"):
        b"".join(open_source(path).blocks())


def test_where_pyav_is_not_installed_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = record(tmp_path / "a.flac", "flac", 16_000)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BadAudio, match=r"a recording in FLAC.*pip install av, or"):
        open_source(path)


def test_raw_samples_are_not_taken_for_a_recording(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Loud samples that begin as a frame of MPEG audio does, and do not go on as one.
    path = tmp_path / "raw"
    path.write_bytes(b"\xff\xfb\x90\x00" + bytes(range(256)) * 20)
    with path.open("rb") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert isinstance(open_source("-"), RawSource)
    with pytest.raises(BadAudio, match="is no recording that is known here"):
        open_source(path)
