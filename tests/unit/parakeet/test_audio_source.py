"""Audio that clients send: WAV files, raw stdin, pacing."""

from __future__ import annotations

import array
import asyncio
import os
import wave
from pathlib import Path

import pytest

from parakeet.audio_source import BadAudio, Recording, read_wav, recording_blocks, stdin_blocks


def write_wav(
    path: Path, samples: list[int], *, channels: int = 1, width: int = 2, rate: int = 16_000
) -> Path:
    with wave.open(str(path), "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(rate)
        writer.writeframes(array.array("h", samples).tobytes())
    return path


def test_a_mono_file_is_read_as_it_is(tmp_path: Path) -> None:
    recording = read_wav(write_wav(tmp_path / "a.wav", [0, 1, -2, 32767, -32768], rate=8000))
    assert recording == Recording(array.array("h", [0, 1, -2, 32767, -32768]).tobytes(), 8000)
    assert recording.seconds == 5 / 8000


def test_channels_are_averaged(tmp_path: Path) -> None:
    recording = read_wav(write_wav(tmp_path / "a.wav", [10, 20, -4, 4, 32767, 32767], channels=2))
    assert array.array("h", recording.pcm).tolist() == [15, 0, 32767]


def test_what_is_no_16_bit_wav_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadAudio, match="8-bit samples, but takes 16-bit"):
        read_wav(write_wav(tmp_path / "a.wav", [1, 2], width=1))
    (tmp_path / "b.wav").write_bytes(b"ID3 this is no WAV")
    with pytest.raises(BadAudio, match="cannot be read as a WAV file"):
        read_wav(tmp_path / "b.wav")
    with pytest.raises(BadAudio, match="No such file"):
        read_wav(tmp_path / "none.wav")


@pytest.mark.parametrize("message_ms", [10, 37, 160, 5000])
async def test_blocks_add_up_to_the_recording(message_ms: int) -> None:
    recording = Recording(os.urandom(2 * 7001), 16_000)
    blocks = [block async for block in recording_blocks(recording, message_ms, real_time=False)]
    assert b"".join(blocks) == recording.pcm
    assert all(len(block) == 16 * message_ms * 2 for block in blocks[:-1])


async def test_in_real_time_no_block_comes_before_it_was_spoken() -> None:
    recording = Recording(bytes(2 * 1600), 16_000)
    loop = asyncio.get_running_loop()
    started = loop.time()
    spoken = 0
    async for block in recording_blocks(recording, 20, real_time=True):
        spoken += len(block) // 2
        assert loop.time() - started >= spoken / 16_000 - 0.001
    assert spoken == 1600


async def test_stdin_is_sent_as_it_comes_in_whole_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        blocks = stdin_blocks(16_000, 10)
        os.write(writer, b"abc")
        assert await anext(blocks) == b"ab"
        os.write(writer, b"def")
        assert await anext(blocks) == b"cdef"
        os.write(writer, b"g")
        os.close(writer)
        rest = [block async for block in blocks]
        assert rest == []
