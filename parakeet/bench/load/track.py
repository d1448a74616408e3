"""The audio of a load: recordings joined to one loop, encoded to client messages once."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from parakeet.audio.source import read_recording
from parakeet.bench.load.wire import OP_BINARY, OP_TEXT, client_frame

FINAL_MESSAGE = b'{"type":"audio","data":"","final":true}'


@dataclass(frozen=True, slots=True)
class Track:
    """Mono PCM16 little-endian speech of one sample rate, to be played in a loop."""

    sample_rate: int
    pcm16: bytes


@dataclass(frozen=True, slots=True)
class Messages:
    """A track cut and encoded as the bytes that go on the socket.

    Attributes:
        audio: the bytes of each message, in order; the first message follows the last.
        final: bytes of the message that ends a stream.
        samples: number of samples in each message.
    """

    audio: tuple[bytes, ...]
    final: bytes
    samples: int


def load_track(paths: Sequence[Path]) -> Track:
    """Read recordings and join them to one track.

    Raises:
        ValueError: no recording, or differing sample rates.
        BadAudio: a recording that cannot be read.
    """
    rates: set[int] = set()
    parts: list[bytes] = []
    for path in paths:
        recording = read_recording(path)
        rates.add(recording.rate)
        parts.append(recording.pcm)
    if not parts:
        raise ValueError("no recording to play")
    if len(rates) != 1:
        raise ValueError(f"recordings of one sample rate are needed, got {sorted(rates)}")
    return Track(rates.pop(), b"".join(parts))


def encode(track: Track, *, message_ms: int, websocket: bool, binary: bool) -> Messages:
    """Cut a track into messages and encode each as it is written to the socket.

    A remainder shorter than a message is left out of the loop.

    Raises:
        ValueError: binary messages on TCP, or a track shorter than one message.
    """
    if binary and not websocket:
        raise ValueError("binary messages exist on WebSocket only")
    samples = track.sample_rate * message_ms // 1000
    size = 2 * samples
    audio: list[bytes] = []
    for start in range(0, len(track.pcm16) - size + 1, size):
        pcm = track.pcm16[start : start + size]
        if binary:
            audio.append(client_frame(OP_BINARY, pcm))
            continue
        text = b'{"type":"audio","data":"' + base64.b64encode(pcm) + b'"}'
        audio.append(client_frame(OP_TEXT, text) if websocket else text + b"\n")
    if not audio:
        raise ValueError(f"the recordings are shorter than one message of {message_ms} ms")
    final = client_frame(OP_TEXT, FINAL_MESSAGE) if websocket else FINAL_MESSAGE + b"\n"
    return Messages(tuple(audio), final, samples)
