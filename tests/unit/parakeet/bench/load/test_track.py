"""Recordings as ready-made client messages."""

from __future__ import annotations

import base64
import wave
from pathlib import Path

import orjson
import pytest

from parakeet.audio.errors import BadAudio
from parakeet.bench.load.track import Track, encode, load_track
from parakeet.bench.plan import Target


def write_wav(path: Path, pcm: bytes, rate: int = 16000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm)
    return path


def test_messages_carry_the_recordings_sample_for_sample(tmp_path: Path) -> None:
    pcm = bytes(i % 256 for i in range(2 * 16000))
    first = write_wav(tmp_path / "a.wav", pcm[:20000])
    second = write_wav(tmp_path / "b.wav", pcm[20000:])
    messages = encode(load_track([first, second]), message_ms=100, websocket=False, binary=False)
    assert messages.samples == 1600
    assert len(messages.audio) == 10
    sent = b"".join(base64.b64decode(orjson.loads(line)["data"]) for line in messages.audio)
    assert sent == pcm
    assert all(line.endswith(b"\n") for line in messages.audio)
    assert orjson.loads(messages.final)["final"] is True


def test_what_cannot_be_played_is_refused(tmp_path: Path) -> None:
    (tmp_path / "n.wav").write_bytes(b"no recording")
    slow = write_wav(tmp_path / "r.wav", b"\0" * 400, rate=8000)
    fine = write_wav(tmp_path / "f.wav", b"\0" * 400)
    with pytest.raises(BadAudio, match="no recording that is known"):
        load_track([tmp_path / "n.wav"])
    with pytest.raises(ValueError, match="one sample rate"):
        load_track([slow, fine])
    with pytest.raises(ValueError, match="no recording"):
        load_track([])
    with pytest.raises(ValueError, match="WebSocket only"):
        encode(load_track([fine]), message_ms=10, websocket=False, binary=True)
    with pytest.raises(ValueError, match="shorter"):
        encode(Track(16000, b"\0" * 100), message_ms=100, websocket=True, binary=False)


def test_targets() -> None:
    assert str(Target.parse("ws://localhost:8000")) == "ws://localhost:8000/"
    assert str(Target.parse("tcp://127.0.0.1:8765")) == "tcp://127.0.0.1:8765"
    assert str(Target.parse("wss://localhost:8000")) == "wss://localhost:8000/"
    assert str(Target.parse("tcps://localhost:8765")) == "tcps://localhost:8765"
    for wrong in ("http://x:1", "ws://x", "x:1"):
        with pytest.raises(ValueError, match="expected"):
            Target.parse(wrong)
