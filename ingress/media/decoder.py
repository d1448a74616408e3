"""Runs the decoding of media in child processes (child.py), off the event loop and within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from common.errors import ParakeetError
from ingress.media.child import FAILED, MAX_MEMORY_BYTES, NO_AUDIO, RAW_OPUS, RAW_SAMPLES

logger = logging.getLogger(__name__)

# Bytes of samples in a block, and the bound of the pipe's buffer here.
_BLOCK_BYTES: Final = 32 << 10
_MAX_HEADER_BYTES: Final = 256
_MAX_REASON_BYTES: Final = 4096
# Longest wait for a child that has all of its input, or that has to read a block of it.
_STALL_S: Final = 60.0
# Longest wait for a child whose input goes on: its client may be silent, up to --idle-timeout-s.
_OPEN_INPUT_S: Final = 3600.0
_EXIT_S: Final = 5.0


class MediaError(ParakeetError):
    """Media that cannot be decoded; the message is a sentence for the client."""


class DecodersBusy(ParakeetError):  # noqa: N818 - the name says it
    """The bound on inputs that are decoded at once is reached."""


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """The format of decoded samples: 16-bit, little-endian, interleaved channels or one of them. rate: Hz."""

    rate: int
    channels: int


@dataclass(frozen=True, slots=True)
class MediaInput:
    """An input to decode, and the wanted channels.

    demuxer: name from `formats.MediaFormat`, RAW_OPUS or one of RAW_SAMPLES. file: path of the media; None
    for media that is fed. mix: whether to mix all channels to their mean. channel: the one channel to return,
    from 0, where they are not mixed; None for all. rate (Hz), channels: of input without a head.
    """

    demuxer: str
    file: Path | None = None
    mix: bool = True
    channel: int | None = None
    rate: int = 48_000
    channels: int = 1

    def argv(self) -> list[str]:
        """Return the command line of the child."""
        argv = [sys.executable, "-m", "ingress.media.child", f"--demuxer={self.demuxer}"]
        if self.file is not None:
            argv.append(f"--file={self.file}")
        if self.mix:
            argv.append("--mix")
        if self.channel is not None:
            argv.append(f"--channel={self.channel}")
        if self.demuxer == RAW_OPUS or self.demuxer in RAW_SAMPLES:
            argv += [f"--rate={self.rate}", f"--channels={self.channels}"]
        return argv


class Decoders:
    """All decoders of an ingress: at most `max_running` children at once.

    max_memory_bytes: memory of one child, its libraries (some 120 MB) included.
    """

    def __init__(self, max_running: int, max_memory_bytes: int = MAX_MEMORY_BYTES) -> None:
        self._max_running = max_running
        self._max_memory_bytes = max_memory_bytes
        self._running = 0
        self._ending: set[asyncio.Task[Any]] = set()

    @property
    def running(self) -> int:
        """Number of running children."""
        return self._running

    def hold(self) -> None:
        """Reserve a child, until `start` or `let_go`. Raises DecodersBusy."""
        if self._running >= self._max_running:
            raise DecodersBusy(f"This server decodes {self._max_running} inputs at once; try again later.")
        self._running += 1

    def let_go(self) -> None:
        """Return a reservation of `hold` under which no child will be started."""
        self._running -= 1

    async def start(self, media: MediaInput, *, held: bool = False) -> Decoder:
        """Start a decoder; use the result in `async with`, or close it. Raises DecodersBusy.

        held: whether `hold` has reserved the child.
        """
        if not held:
            self.hold()
        starting = asyncio.create_task(self._spawn(media), name="decoder-start")
        try:
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The child starts all the same: it is counted until it has ended.
            self._ending.add(starting)
            starting.add_done_callback(self._end_unwanted)
            raise
        except BaseException:
            self.let_go()
            raise
        return Decoder(process, self._end, whole=media.file is not None)

    async def _spawn(self, media: MediaInput) -> asyncio.subprocess.Process:
        with _no_garbage_collection():
            return await asyncio.create_subprocess_exec(
                *media.argv(),
                f"--memory={self._max_memory_bytes}",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=2 * _BLOCK_BYTES,
                env=_environment(),
            )

    def _end_unwanted(self, starting: asyncio.Task[asyncio.subprocess.Process]) -> None:
        """End a child whose caller was cancelled while it was started."""
        self._ending.discard(starting)
        if starting.cancelled() or starting.exception() is not None:
            self.let_go()
            return
        process = starting.result()
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        assert process.stdin is not None
        process.stdin.close()
        self._end(process)

    def _end(self, process: asyncio.subprocess.Process) -> asyncio.Task[None]:
        """Return the task that waits for a child's end; it goes on if its caller is cancelled."""
        task = asyncio.create_task(self._see_off(process), name="decoder-end")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _see_off(self, process: asyncio.subprocess.Process) -> None:
        try:
            await process.communicate()  # a pipe that is not read to its end stays open
        finally:
            self._running -= 1


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep the collector away while a process is forked.

    uvloop runs Python code in the child before the child becomes another program. A collection there may
    free an object that waits for its own threads, which the child does not have; and the parent waits for it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _environment() -> dict[str, str]:
    """Return the environment of a child: where the packages are, and no settings or secrets of the server."""
    return {
        name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LANG", "HOME")
    }


class Decoder:
    """One input that is being decoded.

    whole: whether all of the input is there; else it is fed.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        end: Callable[[asyncio.subprocess.Process], asyncio.Task[None]],
        *,
        whole: bool,
    ) -> None:
        self._whole = whole
        self._wait: asyncio.Timeout | None = None
        self._process = process
        self._end = end
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._stderr = process.stderr

    async def __aenter__(self) -> Decoder:
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def is_working(self) -> bool:
        """Whether the child runs, or would if it had a processor: then it may have input left to decode.

        A child that sleeps waits for input, or for its samples to be read. False where there is no /proc.
        """
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_bytes()
        except OSError:
            return False
        state = stat.rpartition(b")")[2].split()[0]
        return state not in (b"S", b"Z", b"X")

    async def feed(self, data: bytes) -> None:
        """Write more of the media to the child; wait while the child is behind. Raises MediaError."""
        self._stdin.write(data)
        try:
            async with asyncio.timeout(_STALL_S):
                await self._stdin.drain()
        except TimeoutError:
            raise MediaError("The media takes too long to decode.") from None
        except (BrokenPipeError, ConnectionResetError):
            # The child has read enough, or has failed; its output says which.
            return

    def end_input(self) -> None:
        """Note that the media is complete."""
        self._whole = True
        self._stdin.close()
        if self._wait is not None:
            self._wait.reschedule(asyncio.get_running_loop().time() + _STALL_S)

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncGenerator[None]:
        """Bound the wait for the child's output. Raises MediaError."""
        try:
            async with asyncio.timeout(_STALL_S if self._whole else _OPEN_INPUT_S) as self._wait:
                yield
        except TimeoutError:
            raise MediaError("The media takes too long to decode.") from None
        finally:
            self._wait = None

    async def audio(self) -> DecodedAudio:
        """Wait for the format of the samples. Raises MediaError."""
        try:
            async with self._in_time():
                header = await self._stdout.readuntil(b"\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            raise await self._failure() from None
        if len(header) > _MAX_HEADER_BYTES:
            raise MediaError("The media cannot be decoded.")
        fields = json.loads(header)
        return DecodedAudio(int(fields["rate"]), int(fields["channels"]))

    async def blocks(self) -> AsyncGenerator[bytes]:
        """Yield the samples, after `audio`. Raises MediaError at the end where the media ends in a fault."""
        while True:
            async with self._in_time():
                block = await self._stdout.read(_BLOCK_BYTES)
            if not block:
                break
            yield block
        try:
            async with asyncio.timeout(_EXIT_S):
                status = await self._process.wait()
        except TimeoutError:
            raise MediaError("The media takes too long to decode.") from None
        if status != 0:
            raise await self._failure()

    async def _failure(self) -> MediaError:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_S):
                status = await self._process.wait()
                reason = (await self._stderr.read(_MAX_REASON_BYTES)).decode(errors="replace").strip()
                if status == NO_AUDIO:
                    return MediaError("The media has no sound in it.")
                if status == FAILED and reason:
                    return MediaError(f"The media cannot be decoded: {reason.rstrip('.')}.")
                if status >= 0:  # a defect of the server; the last line says most
                    last = reason.rpartition("\n")[2]
                    logger.error("The decoding process ended with status %d: %s", status, last)
                    return MediaError("The media cannot be decoded.")
        # Killed: by its limits, or by the kernel.
        return MediaError("The media cannot be decoded within the limits of time and memory.")

    async def close(self) -> None:
        """End the child, whatever it is doing. Further calls do nothing."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._stdin.close()
        await asyncio.shield(self._end(self._process))
