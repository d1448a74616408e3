"""`parakeet-server transcribe`: a recording, stdin or the microphone as text, while it is spoken."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict

from common.addresses import host_and_port
from common.messages import Result
from common.settings import TranscribeSettings
from parakeet.audio_source import BadAudio, microphone_blocks, read_wav, recording_blocks, stdin_blocks
from parakeet.client import ClientError, Stream, connect
from parakeet.live_text import LiveText

Blocks = Callable[[int], AsyncIterator[bytes]]
"""Makes the blocks of pcm16 audio at the sample rate that the server expects."""


async def transcribe_blocks(
    url: str,
    make_blocks: Blocks,
    on_result: Callable[[Result], None],
    *,
    stop: asyncio.Event | None = None,
) -> Result:
    """Stream audio and return the final result; each result goes to `on_result` first.

    Once `stop` is set, no more audio is sent and the stream is finished. Raises ClientError, BadAudio.
    """
    async with await connect(url) as stream:
        try:
            async with asyncio.TaskGroup() as tasks:
                feed = tasks.create_task(_feed(stream, make_blocks(stream.sample_rate), stop), name="feed")
                async for result in stream.results():
                    on_result(result)
                feed.cancel()
        except* (ClientError, BadAudio) as failures:
            # Sender and reader may both have failed, with one and the same cause.
            raise _first(failures) from None
    return result


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _feed(stream: Stream, blocks: AsyncIterator[bytes], stop: asyncio.Event | None) -> None:
    stopped = asyncio.create_task((stop or asyncio.Event()).wait(), name="stop")
    try:
        while True:
            # The source may wait long for its next block; a stop does not.
            following = asyncio.ensure_future(anext(blocks, None))
            await asyncio.wait({following, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await following
                break
            block = following.result()
            if block is None:
                break
            await stream.send(block)
            if stopped.done():
                break
    finally:
        stopped.cancel()
    await stream.finish()


def _make_blocks(settings: TranscribeSettings) -> Blocks:
    if settings.mic:
        return lambda rate: microphone_blocks(rate, settings.message_ms)
    if settings.source == "-":

        def from_stdin(rate: int) -> AsyncIterator[bytes]:
            _check_rate("stdin (see --input-rate)", settings.input_rate, rate)
            return stdin_blocks(rate, settings.message_ms)

        return from_stdin
    # Read before a connection is made: a wrong path takes no stream.
    recording = read_wav(settings.source)

    def from_file(rate: int) -> AsyncIterator[bytes]:
        _check_rate(settings.source, recording.rate, rate)
        return recording_blocks(recording, settings.message_ms, real_time=settings.real_time)

    return from_file


def _check_rate(what: str, rate: int, expected: int) -> None:
    if rate != expected:
        raise BadAudio(
            f"{what} has {rate} samples a second, but the server takes {expected}"
            " (its --sample-rate); convert the audio or start the server with that rate."
        )


async def _transcribe(settings: TranscribeSettings) -> None:
    url = settings.url or f"ws://{host_and_port(settings.host, settings.ws_port)}"
    live = LiveText(sys.stderr, partials=sys.stderr.isatty() and not settings.json)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # event loops of Windows have no signal handlers
        # Ctrl-C ends the audio; the final text still comes.
        loop.add_signal_handler(signal.SIGINT, _stop_or_leave, stop)

    def show(result: Result) -> None:
        if settings.json:
            sys.stdout.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
            sys.stdout.flush()
        else:
            live.show(result.text)

    final = await transcribe_blocks(url, _make_blocks(settings), show, stop=stop)
    live.clear()
    if not settings.json:
        sys.stdout.write(final.text + "\n")


def _stop_or_leave(stop: asyncio.Event) -> None:
    """First Ctrl-C: end the audio. Second: leave at once."""
    if stop.is_set():
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    stop.set()


def run_transcribe(settings: TranscribeSettings) -> int:
    """Print the text of the audio; partial results change in place on a terminal's stderr."""
    asyncio.run(_transcribe(settings))
    return 0
