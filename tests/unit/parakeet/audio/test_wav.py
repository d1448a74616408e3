"""WAV files as they are written in the world: each kind returns the samples that went in."""

from __future__ import annotations

import array
import io
import os
import struct
import threading
import wave
from collections.abc import Callable
from pathlib import Path

import pytest

from common.wav_head import UnknownWavFormat
from parakeet.audio.byte_input import ByteInput
from parakeet.audio.errors import BadAudio
from parakeet.audio.wav import WavSource

GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
RAMP = [0, 1, -2, 256, -257, 12_345, -12_345, 32_767, -32_768]


def chunk(mark: bytes, data: bytes, order: str = "<") -> bytes:
    return mark + struct.pack(f"{order}I", len(data)) + data + b"\0" * (len(data) % 2)


def fmt(tag: int, width: int, *, channels: int = 1, rate: int = 16_000, order: str = "<") -> bytes:
    block = channels * width
    return struct.pack(f"{order}HHIIHH", tag, channels, rate, rate * block, block, width * 8)


def riff(
    fmt_data: bytes, body: bytes, *, size: int | None = None, before: bytes = b"", after: bytes = b""
) -> bytes:
    """A RIFF file; size: what the data's chunk says of its length."""
    data = b"data" + struct.pack("<I", len(body) if size is None else size) + body
    inner = b"WAVE" + chunk(b"fmt ", fmt_data) + before + data + after
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def read(path: Path, content: bytes) -> tuple[WavSource, list[int]]:
    path.write_bytes(content)
    source = WavSource(ByteInput(path))
    data = b"".join(source.blocks())
    source.close()
    return source, array.array("h", data).tolist()


def pcm(samples: list[int], width: int) -> bytes:
    """Little-endian integers with 16-bit samples in their upper bits."""
    if width == 1:
        return bytes((sample >> 8) + 128 for sample in samples)
    return b"".join((sample << 8 * (width - 2)).to_bytes(width, "little", signed=True) for sample in samples)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8])
def test_integers_of_every_width(width: int, tmp_path: Path) -> None:
    _, samples = read(tmp_path / "a.wav", riff(fmt(1, width), pcm(RAMP, width)))
    assert samples == [sample >> 8 << 8 for sample in RAMP] if width == 1 else samples == RAMP


@pytest.mark.parametrize(("width", "code"), [(4, "f"), (8, "d")])
def test_floats_have_full_scale_at_one_and_stop_there(width: int, code: str, tmp_path: Path) -> None:
    values = [0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -1e30, float("inf"), float("nan")]
    _, samples = read(tmp_path / "a.wav", riff(fmt(3, width), struct.pack(f"<9{code}", *values)))
    assert samples == [0, 16_384, -16_384, 32_767, -32_768, 32_767, -32_768, 32_767, 0]


@pytest.mark.parametrize(
    ("tag", "codes", "expected"),
    [
        # ITU-T G.711: silence, the least steps, and the ends of both scales.
        (7, [0xFF, 0x7F, 0xFE, 0x80, 0x00], [0, 0, 8, 32_124, -32_124]),
        (6, [0xD5, 0x55, 0xD4, 0xAA, 0x2A], [8, -8, 24, 32_256, -32_256]),
    ],
)
def test_telephone_samples(tag: int, codes: list[int], expected: list[int], tmp_path: Path) -> None:
    source, samples = read(tmp_path / "a.wav", riff(fmt(tag, 1, rate=8000), bytes(codes)))
    assert (source.rate, samples) == (8000, expected)


@pytest.mark.parametrize(("tag", "width"), [(1, 2), (1, 3), (3, 4), (7, 1)])
def test_extensible_files_are_what_their_identifier_says(tag: int, width: int, tmp_path: Path) -> None:
    body = pcm(RAMP, width) if tag == 1 else bytes(len(RAMP) * width)
    plain = read(tmp_path / "a.wav", riff(fmt(tag, width), body))[1]
    extended = fmt(0xFFFE, width) + struct.pack("<HHIH", 22, width * 8, 4, tag) + GUID_TAIL
    assert read(tmp_path / "b.wav", riff(extended, body))[1] == plain


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFF000])
def test_a_size_that_its_writer_did_not_know_is_all_that_is_there(size: int, tmp_path: Path) -> None:
    source, samples = read(tmp_path / "a.wav", riff(fmt(1, 2), pcm(RAMP, 2), size=size))
    assert samples == RAMP
    assert source.problem is None


def test_rf64_has_its_size_in_a_chunk_of_its_own(tmp_path: Path) -> None:
    body = pcm(RAMP, 2)
    content = (
        b"RF64\xff\xff\xff\xffWAVE"
        + chunk(b"ds64", struct.pack("<QQQI", 0, len(body), len(RAMP), 0))
        + chunk(b"fmt ", fmt(1, 2))
        + b"data\xff\xff\xff\xff"
        + body
        + chunk(b"LIST", b"no samples")
    )
    for mark in (b"RF64", b"BW64"):
        source, samples = read(tmp_path / "a.wav", mark + content[4:])
        assert samples == RAMP
        assert source.seconds == len(RAMP) / 16_000


@pytest.mark.parametrize("width", [2, 3])
def test_rifx_is_big_endian(width: int, tmp_path: Path) -> None:
    body = b"".join((sample << 8 * (width - 2)).to_bytes(width, "big", signed=True) for sample in RAMP)
    inner = b"WAVE" + chunk(b"fmt ", fmt(1, width, order=">"), ">") + chunk(b"data", body, ">")
    assert read(tmp_path / "a.wav", b"RIFX" + struct.pack(">I", len(inner)) + inner)[1] == RAMP


def test_other_chunks_are_passed_over(tmp_path: Path) -> None:
    before = chunk(b"LIST", b"odd") + chunk(b"bext", bytes(100_000)) + chunk(b"fact", bytes(4))
    content = riff(fmt(1, 2), pcm(RAMP, 2), before=before, after=chunk(b"LIST", b"behind the samples"))
    assert read(tmp_path / "a.wav", content)[1] == RAMP


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_what_python_writes(channels: int, tmp_path: Path) -> None:
    written = io.BytesIO()
    with wave.open(written, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(22_050)
        writer.writeframes(array.array("h", [n for n in RAMP for _ in range(channels)]).tobytes())
    source, samples = read(tmp_path / "a.wav", written.getvalue())
    assert (source.rate, samples) == (22_050, RAMP)


@pytest.mark.parametrize(
    ("rate", "sent"),
    [
        (8000, 8000),
        (44_100, 44_100),
        (48_000, 48_000),
        (96_000, 48_000),
        (192_000, 48_000),
        (4000, 8000),
        (88_200, 44_100),
    ],
)
def test_a_rate_that_no_server_takes_is_brought_near_it(rate: int, sent: int, tmp_path: Path) -> None:
    source, samples = read(tmp_path / "a.wav", riff(fmt(1, 2, rate=rate), pcm([1000] * rate, 2)))
    assert source.rate == sent
    assert source.seconds == 1.0
    assert samples == [1000] * sent


def test_a_header_that_claims_more_gives_what_is_there_and_says_so(tmp_path: Path) -> None:
    source, samples = read(tmp_path / "cut.wav", riff(fmt(1, 2), pcm([7] * 8000, 2) + b"\1", size=32_000))
    assert samples == [7] * 8000
    assert source.problem is not None
    assert "cut.wav is not whole: its header says 1.00 s, and 0.50 s are there." in source.problem


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"RIFF\0\0\0\0WAVE", "it ends before its samples"),
        (riff(b"short", b""), "its format takes 5 bytes"),
        (b"RIFF\0\0\0\0WAVE" + chunk(b"data", b"12"), "samples come before their format"),
        (riff(fmt(1, 2, channels=0), b""), "0 channels"),
        (riff(fmt(1, 2, rate=0), b""), "0 samples a second"),
        (riff(fmt(3, 2), b""), "2 bytes a sample"),
    ],
)
def test_a_damaged_head_is_a_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BadAudio, match=sentence):
        read(tmp_path / "a.wav", content)


def test_compressed_samples_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownWavFormat, match="compressed format \\(number 0x0011\\)"):
        read(tmp_path / "a.wav", riff(fmt(0x11, 1), b"1234"))


@pytest.mark.parametrize("pieces", [1, 3, 1000])
def test_a_pipe_gives_the_same_samples_however_it_is_written(
    pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = riff(fmt(1, 3, channels=2), pcm([n for n in RAMP * 100 for _ in range(2)], 3), size=0)
    reader, writer = os.pipe()

    def write() -> None:
        for at in range(0, len(content), pieces):
            os.write(writer, content[at : at + pieces])
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    with os.fdopen(reader, "rb") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        source = WavSource(ByteInput("-"))
        assert source.seconds is None
        assert array.array("h", b"".join(source.blocks())).tolist() == RAMP * 100
    thread.join()


@pytest.mark.parametrize("make", [lambda path: path / "none.wav", lambda path: path])
def test_what_is_no_file_is_a_sentence(make: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.raises(BadAudio, match=r"No such file|is a folder"):
        ByteInput(make(tmp_path))
