"""Sources of audio for a client: recordings, stdin and the microphone; the first bytes select the reader."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from common.wav_head import MARKS, UnknownWavFormat, is_wav
from parakeet.audio.byte_input import ByteInput
from parakeet.audio.container import HEAD_BYTES, ContainerSource, container_name
from parakeet.audio.errors import BadAudio
from parakeet.audio.wav import WavSource

DEFAULT_RATE: Final = 16_000
_QUEUED_BLOCKS: Final = 16
_MICROPHONE_BLOCK_S: Final = 0.05


class Source(Protocol):
    """Audio in mono pcm16le blocks. Reading may block; `stream_blocks` reads in a thread."""

    @property
    def rate(self) -> int:
        """Samples a second of the blocks, 8 to 48 kHz."""

    @property
    def seconds(self) -> float | None:
        """Length in seconds, where it is known beforehand."""

    @property
    def problem(self) -> str | None:
        """After the last block: a sentence about a fault of the recording, None for none."""

    def blocks(self) -> Iterator[bytes]:
        """Yield whole samples, in blocks of any size. Raises BadAudio."""

    def close(self) -> None:
        """Close the file or the device."""


@dataclass(frozen=True, slots=True)
class Recording:
    """A whole recording in memory: mono pcm16le bytes at `rate` samples a second."""

    pcm: bytes
    rate: int

    @property
    def seconds(self) -> float:
        return len(self.pcm) / 2 / self.rate

    @property
    def problem(self) -> str | None:
        return None

    def blocks(self) -> Iterator[bytes]:
        size = self.rate // 4 * 2
        return (self.pcm[at : at + size] for at in range(0, len(self.pcm), size))

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


class RawSource:
    """Mono pcm16le without a header; only its sender knows the rate."""

    def __init__(self, data: ByteInput, rate: int) -> None:
        self._input = data
        self.rate: Final = rate
        self.problem: str | None = None

    @property
    def seconds(self) -> float | None:
        left = self._input.bytes_left
        return None if left is None else left / 2 / self.rate

    def blocks(self) -> Iterator[bytes]:
        rest = b""
        while data := self._input.read(self.rate // 4 * 2):
            rest += data
            whole = len(rest) - len(rest) % 2
            yield rest[:whole]
            rest = rest[whole:]

    def close(self) -> None:
        self._input.close()


class MicrophoneSource:
    """The default microphone, as long as it is read. Needs sounddevice and PortAudio."""

    seconds = None
    problem = None

    def __init__(self, rate: int = DEFAULT_RATE) -> None:
        """Open the microphone. Raises BadAudio."""
        try:
            import sounddevice
        except (ImportError, OSError) as error:  # OSError: the PortAudio library is missing
            raise BadAudio(
                "The microphone needs PortAudio and the sounddevice package (on Debian, apt-get install"
                f" libportaudio2 && pip install sounddevice): {error}."
            ) from error
        self.rate: Final = rate
        self._frames = int(rate * _MICROPHONE_BLOCK_S)
        self._error: type[Exception] = sounddevice.PortAudioError
        try:
            self._stream: Any = sounddevice.RawInputStream(
                samplerate=rate, channels=1, dtype="int16", blocksize=self._frames
            )
            self._stream.start()
        except sounddevice.PortAudioError as error:
            raise BadAudio(f"The microphone cannot be opened: {error}.") from error

    def blocks(self) -> Iterator[bytes]:
        while True:
            try:
                # If the network is slower than speech, PortAudio drops the oldest audio.
                data, _ = self._stream.read(self._frames)
            except self._error as error:
                raise BadAudio(f"The microphone cannot be read: {error}.") from error
            yield bytes(data)

    def close(self) -> None:
        self._stream.close()


def open_source(path: str | Path, input_rate: int = DEFAULT_RATE) -> Source:
    """Open a recording, or stdin for the path `-`, with the reader for its first bytes.

    input_rate: rate of raw 16-bit audio on stdin, Hz. Raises BadAudio with a sentence for the user.
    """
    data = ByteInput(path)
    try:
        head = data.peek(12)
        if is_wav(head):
            return _wav(data)
        head = data.peek(HEAD_BYTES)
        if not head:
            raise BadAudio(f"{data.name} is empty.")
        if kind := container_name(head):
            return ContainerSource(data, kind)
        if data.is_stdin and head[:4] not in MARKS:
            return RawSource(data, input_rate)
        raise BadAudio(
            f"{data.name} is no recording that is known here. Raw 16-bit audio is read from stdin,"
            " with - and --input-rate."
        )
    except BadAudio:
        data.close()
        raise


def _wav(data: ByteInput) -> Source:
    try:
        return WavSource(data)
    except UnknownWavFormat as error:
        if data.is_stdin:  # its head has been read
            raise BadAudio(f"{error} As a file, PyAV may read it.") from error
        return ContainerSource(data, "a compressed WAV format")


def read_recording(path: str | Path) -> Recording:
    """Return a whole recording. Raises BadAudio, also where it is incomplete."""
    source = open_source(path)
    try:
        pcm = b"".join(source.blocks())
    finally:
        source.close()
    if source.problem:
        raise BadAudio(source.problem)
    return Recording(pcm, source.rate)


async def stream_blocks(source: Source, message_ms: int, *, real_time: bool = False) -> AsyncIterator[bytes]:
    """Yield a source in messages of `message_ms`; in real time, each at the time of its last sample.

    The source is read in a thread of its own, which may wait for a pipe or compute, and closed at its end.
    Raises BadAudio.
    """
    size = max(1, source.rate * message_ms // 1000) * 2
    loop = asyncio.get_running_loop()
    started, sent = loop.time(), 0
    pending = bytearray()
    async with contextlib.aclosing(_read_in_thread(source, loop)) as blocks:
        async for block in blocks:
            pending += block or b""
            while len(pending) >= size or (block is None and pending):
                message = bytes(pending[:size])
                del pending[:size]
                sent += len(message)
                if real_time:
                    await asyncio.sleep(max(0.0, started + sent / 2 / source.rate - loop.time()))
                yield message


async def _read_in_thread(
    source: Source, loop: asyncio.AbstractEventLoop
) -> AsyncGenerator[bytes | None, None]:
    """Yield blocks, and None after the last."""
    queue: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()  # `room` bounds it
    room = threading.Semaphore(_QUEUED_BLOCKS)
    abandoned = threading.Event()

    def put(item: bytes | BaseException | None) -> bool:
        """Wait for room in the queue; return False once it has no reader."""
        room.acquire()
        if abandoned.is_set():
            return False
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(queue.put_nowait, item)
            return True
        return False

    def read() -> None:
        failure: BaseException | None = None
        try:
            for block in source.blocks():
                if not put(block):
                    return
        except Exception as error:  # any exception is for the loop's side, which waits for it
            failure = error
        finally:
            source.close()
        put(failure)

    # A daemon: a read that waits for a silent pipe must not delay the end of the program.
    threading.Thread(target=read, name="audio", daemon=True).start()
    try:
        while (item := await queue.get()) is not None:
            room.release()
            if isinstance(item, BaseException):
                raise item
            yield item
        yield None
    finally:
        abandoned.set()
        room.release()
