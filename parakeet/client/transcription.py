"""Transcribes audio of any kind in one call, over the client library."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from common.messages import Result
from common.options import StreamOptions
from parakeet.audio.errors import BadAudio
from parakeet.audio.source import Source, open_source, stream_blocks
from parakeet.client.blocks import Blocks, as_async
from parakeet.client.opening import connect
from parakeet.client.stream import Stream

MESSAGE_MS = 160


async def transcribe(
    url: str | Sequence[str],
    audio: Source | Path | str | Blocks,
    *,
    options: StreamOptions | None = None,
    on_result: Callable[[Result], None] = lambda _: None,
    message_ms: int = MESSAGE_MS,
    real_time: bool = False,
    recording: bool = False,
    stop: asyncio.Event | None = None,
    api_key: str | None = None,
) -> Result:
    """Stream audio and return the final result; each result goes to `on_result` first.

    url: url of the server, or several, as for `connect`.
    audio: a path of a recording (a str is one), an opened source, or samples: bytes, or an iterable or async
        iterable of them, in the options' encoding and at their rate.
    message_ms, real_time: for recordings and sources, the audio of a message, and whether each is sent when
        its last sample is spoken, and not as fast as the server takes it.
    recording: whether a source that does not tell its length, such as stdin, holds a recording: the server
        holds such audio back where it comes much faster than anybody speaks.
    stop: once it is set, no more audio is sent and the stream is finished.
    api_key: key for a server that requires one.

    Raises ClientError; UnusableKey, a ValueError; BadAudio where the audio cannot be read, or, after all
    results, where it was damaged.
    """
    options = options or StreamOptions()
    source: Source | None = None
    if isinstance(audio, str | Path):
        source = open_source(audio)
    elif not isinstance(audio, bytes | bytearray | memoryview | Iterable | AsyncIterable):
        source = audio
    if source is not None:
        # A file is sent as fast as it goes; a microphone, or a pipe, may be somebody who speaks.
        spoken_before = (recording or source.seconds is not None) and not real_time
        options = replace(options, sample_rate=source.rate, encoding="pcm16", recording=spoken_before)
        blocks = stream_blocks(source, message_ms, real_time=real_time)
    else:
        assert not isinstance(audio, str | Path)
        blocks = as_async(audio)  # type: ignore[arg-type]
    try:
        stream = await connect(url, options=options, api_key=api_key)
    except BaseException:
        if source is not None:
            source.close()
        raise
    async with stream:
        feeder = _Feeder(stream, blocks, stop)
        try:
            async with asyncio.TaskGroup() as tasks:
                feed = tasks.create_task(feeder.run(), name="feed")
                async for result in stream.results():
                    on_result(result)
                feed.cancel()
        except BaseExceptionGroup as failures:
            # Sender and reader may both have failed, with one and the same cause.
            raise _first(failures) from None
    if feeder.failure is not None:
        raise feeder.failure
    if source is not None and source.problem is not None:
        raise BadAudio(source.problem)
    return result


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Feeder:
    """Sends blocks until they end or fail, or until a stop is requested, and finishes the stream."""

    def __init__(self, stream: Stream, blocks: AsyncIterator[bytes], stop: asyncio.Event | None) -> None:
        self._stream = stream
        self._blocks = blocks
        self._stop = stop or asyncio.Event()
        self.failure: BadAudio | None = None
        """The error that ended the audio early; the audio before it is recognised all the same."""

    async def run(self) -> None:
        stopped = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            while (block := await self._next(stopped)) is not None:
                await self._stream.send(block)
        except BadAudio as error:
            self.failure = error
        finally:
            stopped.cancel()
        await self._stream.finish()

    async def _next(self, stopped: asyncio.Task[object]) -> bytes | None:
        """Return the next block; None after the last block, or at a stop while the source is waiting."""
        if stopped.done():
            return None
        following = asyncio.ensure_future(anext(self._blocks, None))
        try:
            await asyncio.wait({following, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not following.done():
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await following
        return None if following.cancelled() else following.result()
