"""Blocks of a source as a stream gets them: their sizes, their pace, their failures."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from parakeet.audio.errors import BadAudio
from parakeet.audio.source import MicrophoneSource, Recording, open_source, read_recording, stream_blocks

RECORDINGS = Path(__file__).parents[4] / "parakeet" / "recordings"


@pytest.mark.parametrize("message_ms", [10, 37, 160, 5000])
async def test_blocks_add_up_to_the_recording(message_ms: int) -> None:
    recording = Recording(os.urandom(2 * 7001), 16_000)
    blocks = [block async for block in stream_blocks(recording, message_ms)]
    assert b"".join(blocks) == recording.pcm
    assert all(len(block) == 16 * message_ms * 2 for block in blocks[:-1])


async def test_in_real_time_no_block_comes_before_it_was_spoken() -> None:
    recording = Recording(bytes(2 * 1600), 16_000)
    loop = asyncio.get_running_loop()
    started = loop.time()
    spoken = 0
    async for block in stream_blocks(recording, 20, real_time=True):
        spoken += len(block) // 2
        assert loop.time() - started >= spoken / 16_000 - 0.001
    assert spoken == 1600


async def test_raw_stdin_is_sent_as_it_comes_in_whole_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        os.write(writer, bytes(4096))  # as much as tells raw audio from a recording
        source = open_source("-", 8000)
        blocks = stream_blocks(source, 10)
        assert [await anext(blocks) for _ in range(25)] == [bytes(160)] * 25
        os.write(writer, bytes(63) + b"a")
        assert await anext(blocks) == bytes(159) + b"a"
        os.write(writer, b"cde")
        os.close(writer)
        assert [block async for block in blocks] == [b"cd"]
    assert source.rate == 8000


async def test_a_source_that_fails_fails_its_reader() -> None:
    class Failing(Recording):
        def blocks(self) -> Iterator[bytes]:
            yield bytes(320)
            raise BadAudio("It broke.")

    blocks = stream_blocks(Failing(b"", 16_000), 10)
    assert await anext(blocks) == bytes(320)
    with pytest.raises(BadAudio, match="It broke"):
        await anext(blocks)


def test_a_microphone_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(BadAudio, match="apt-get install libportaudio2 && pip install sounddevice"):
        MicrophoneSource()


def test_a_recording_is_read_whole(tmp_path: Path) -> None:
    recording = read_recording(RECORDINGS / "goforward.wav")
    assert recording.rate == 16_000
    assert recording.seconds == pytest.approx(2.8, abs=0.1)
    path = tmp_path / "cut.wav"
    path.write_bytes((RECORDINGS / "goforward.wav").read_bytes()[:20_000])
    with pytest.raises(BadAudio, match="is not whole"):
        read_recording(path)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(BadAudio, match="is empty"):
        read_recording(tmp_path / "empty.wav")
