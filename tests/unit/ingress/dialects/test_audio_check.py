"""What is no raw audio is told by its first bytes, and what is too loud by its floats' highest bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ErrorCode, WarningCode
from ingress.dialects.audio_check import AudioHead, LevelMeter

CONTAINERS = {
    "WebM": b"\x1aE\xdf\xa3\x9f\x42\x86\x81\x01\x42\xf7\x81\x01",
    "Ogg": b"OggS\0\x02" + bytes(20),
    "FLAC": b"fLaC\0\0\0\x22" + bytes(20),
    "MP3": b"ID3\x04\0\0\0\0\0\0" + bytes(20),
    "WAV": b"RIFF\x24\x7d\0\0WAVEfmt ",
    "MP4": b"\0\0\0\x18ftypmp42\0\0",
    "AIFF": b"FORM\0\0\0\0AIFFCOMM",
    "AMR": b"#!AMR-WB\n" + bytes(20),
    "AU": b".snd\0\0\0\x18" + bytes(20),
}


def _head(data: bytes, size: int) -> tuple[str | None, bool]:
    """What the first bytes, so many at a time, are told to be; and whether more of them would matter."""
    head = AudioHead()
    for at in range(0, len(data), size):
        fault = head.push(data[at : at + size])
        if fault is not None:
            assert fault.code is ErrorCode.WRONG_ENCODING
            return fault.message, head.known
        if head.known:
            break
    return None, head.known


@pytest.mark.parametrize("size", [2, 4, 6, 100])
@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_is_named_however_it_is_cut(name: str, size: int) -> None:
    said, _ = _head(CONTAINERS[name], size)
    assert said is not None
    assert f" {name}, a container" in said


@given(
    samples=st.lists(st.integers(-32768, 32767), min_size=6, max_size=20),
    size=st.sampled_from([2, 6, 100]),
)
def test_samples_are_no_container(samples: list[int], size: int) -> None:
    assert _head(struct.pack(f"<{len(samples)}h", *samples), size) == (None, True)


def _warning(seconds: list[float], *, message: int = 1600, rate: int = 16000) -> str | None:
    """The warning about audio whose seconds are each at one level."""
    meter = LevelMeter(rate)
    payload = b"".join(struct.pack("<f", level) * rate for level in seconds)
    said = [meter.push(payload[at : at + 4 * message]) for at in range(0, len(payload), 4 * message)]
    warnings = [warning.code for warning in said if warning is not None]
    assert len(warnings) <= 1
    return warnings[0] if warnings else None


@pytest.mark.parametrize("message", [100, 1600, 16000, 48000])
def test_the_level_of_floats(message: int) -> None:
    assert _warning([1.0, -1.0, 0.0, 1.9], message=message) is None
    assert _warning([0.1, -3.0, 3.0], message=message) == WarningCode.OVER_FULL_SCALE
    assert _warning([0.0, -20000.0, 300.0], message=message) == WarningCode.INTEGER_SCALE


def test_a_click_is_no_level() -> None:
    meter = LevelMeter(16000)
    for _ in range(30):
        assert meter.push(struct.pack("<f", 30000.0) * 20 + struct.pack("<f", 0.5) * 15980) is None
    meter = LevelMeter(16000)
    for _ in range(30):
        assert meter.push(struct.pack("<f", 2.5) * 3999 + struct.pack("<f", 0.5) * 12001) is None


def test_speech_in_the_scale_of_integers_is_told_within_its_first_syllable() -> None:
    meter = LevelMeter(8000)
    quiet = struct.pack("<f", 40.0) * 800
    assert meter.push(quiet) is None
    assert meter.push(struct.pack("<f", -2000.0) * 800) is not None
