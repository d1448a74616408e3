"""Audio for a client to send: WAV files, raw 16-bit audio on stdin, the microphone.

Every source yields blocks of mono pcm16le bytes and knows its sample rate.
"""

from __future__ import annotations

import array
import asyncio
import concurrent.futures
import contextlib
import os
import sys
import threading
import wave
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ServiceError

_MIC_QUEUE_BLOCKS = 256
_STDIN_QUEUE_BLOCKS = 16


class BadAudio(ServiceError):  # noqa: N818 - the name says it
    """A recording that cannot be read, or a device that is not there."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A whole recording: mono pcm16le bytes at `rate` samples a second."""

    pcm: bytes
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.pcm) / 2 / self.rate


def read_wav(path: str | Path) -> Recording:
    """Return a 16-bit WAV file as mono; channels are averaged. Raises BadAudio."""
    try:
        with wave.open(str(path), "rb") as reader:
            channels, width, rate = reader.getnchannels(), reader.getsampwidth(), reader.getframerate()
            data = reader.readframes(reader.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise BadAudio(f"{path} cannot be read as a WAV file: {error}.") from error
    if width != 2:
        raise BadAudio(f"{path} has {width * 8}-bit samples, but takes 16-bit ones.")
    data = data[: len(data) - len(data) % (2 * channels)]
    return Recording(data if channels == 1 else _mix(data, channels), rate)


def _mix(interleaved: bytes, channels: int) -> bytes:
    samples = _native(array.array("h", interleaved))
    mono = array.array(
        "h",
        (sum(samples[start : start + channels]) // channels for start in range(0, len(samples), channels)),
    )
    return _native(mono).tobytes()


def _native(samples: array.array[int]) -> array.array[int]:
    """Swap between little endian and this machine's order."""
    if sys.byteorder == "big":
        samples.byteswap()
    return samples


async def recording_blocks(recording: Recording, message_ms: int, *, real_time: bool) -> AsyncIterator[bytes]:
    """Yield the recording in messages of `message_ms`; in real time, each when its last sample is spoken."""
    size = max(1, recording.rate * message_ms // 1000) * 2
    loop = asyncio.get_running_loop()
    started = loop.time()
    for offset in range(0, len(recording.pcm), size):
        block = recording.pcm[offset : offset + size]
        if real_time:
            spoken_s = (offset + len(block)) / 2 / recording.rate
            await asyncio.sleep(max(0.0, started + spoken_s - loop.time()))
        yield block


async def stdin_blocks(rate: int, message_ms: int) -> AsyncIterator[bytes]:
    """Yield raw mono pcm16le audio of stdin as it comes, until its end."""
    size = max(1, rate * message_ms // 1000) * 2
    loop = asyncio.get_running_loop()
    blocks: asyncio.Queue[bytes] = asyncio.Queue(_STDIN_QUEUE_BLOCKS)
    descriptor = sys.stdin.fileno()

    def read() -> None:
        # Ends with the loop, whose closing makes the next put fail.
        with contextlib.suppress(RuntimeError, concurrent.futures.CancelledError):
            data = b"-"
            while data:
                # os.read returns what is there instead of waiting for all of `size`.
                data = os.read(descriptor, size)
                asyncio.run_coroutine_threadsafe(blocks.put(data), loop).result()

    # A daemon: a read that waits for a silent pipe must not hold up the end of the program.
    threading.Thread(target=read, name="stdin", daemon=True).start()
    rest = b""
    while data := await blocks.get():
        rest += data
        whole = len(rest) - len(rest) % 2
        if whole:
            yield rest[:whole]
            rest = rest[whole:]


async def microphone_blocks(rate: int, message_ms: int) -> AsyncIterator[bytes]:
    """Yield the default microphone at `rate` until cancelled. Raises BadAudio without sounddevice."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: the PortAudio library is missing
        raise BadAudio(
            f"The microphone needs the sounddevice package and PortAudio (pip install sounddevice): {error}."
        ) from error
    loop = asyncio.get_running_loop()
    blocks: asyncio.Queue[bytes] = asyncio.Queue(_MIC_QUEUE_BLOCKS)

    def keep(block: bytes) -> None:
        # A network that is too slow for live speech loses the oldest audio, not the memory of this process.
        if blocks.full():
            blocks.get_nowait()
        blocks.put_nowait(block)

    def heard(data: Any, *_: object) -> None:
        loop.call_soon_threadsafe(keep, bytes(data))

    try:
        stream = sounddevice.RawInputStream(
            samplerate=rate, channels=1, dtype="int16", blocksize=rate * message_ms // 1000, callback=heard
        )
        with stream:
            while True:
                yield await blocks.get()
    except sounddevice.PortAudioError as error:
        raise BadAudio(f"The microphone cannot be opened: {error}.") from error
