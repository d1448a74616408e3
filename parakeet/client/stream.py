"""The async Python client: audio in chunks of any size, results as they come, lost connections resumed.

    async with await connect("ws://127.0.0.1:8000") as stream:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(feed(stream))          # await stream.send(pcm); await stream.finish()
            async for result in stream.results():    # ends with the final result
                print(result.text)

Every wait has a time-out. Where the server can resume streams, the client keeps the audio that is
not decoded yet and goes on by itself on a new connection, at the same address or at another.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

from common.client_codec import encode_client_message
from common.errors import ErrorCode, Retry, retry_of
from common.messages import (
    Ack,
    Audio,
    Close,
    Encoding,
    ErrorMessage,
    Finalize,
    Phrases,
    Ping,
    Result,
    ServerMessage,
    WarningMessage,
)
from common.options import StreamOptions
from common.phrases import Phrase
from common.server_codec import decode_server_message
from parakeet.client.blocks import Blocks, as_async
from parakeet.client.channel import Channel, ChannelLost, open_channel
from parakeet.client.errors import (
    ClientBug,
    ClientError,
    ConnectionLost,
    ServerError,
    ServerSilent,
)
from parakeet.client.handshake import Handshake
from parakeet.client.identity import StreamIdentity
from parakeet.client.marks import Mark, Marks
from parakeet.client.outage import Outage
from parakeet.client.result_buffer import ResultBuffer, WholeText
from parakeet.client.sent_audio import SentAudio
from parakeet.client.timeouts import ClientTimeouts

logger = logging.getLogger("parakeet.client")

# Audio that a server may have without reporting it: its longest chunk and a second of acknowledgements.
_UNANSWERED_S: Final = 15.0
# After such an answer to an attempt, the stream still waits for the next one.
_STILL_WAITS: Final = (Retry.RESUME, Retry.LATER)


class Stream:
    """One stream of audio; made by `connect`. For one sender and one reader of results at a time."""

    def __init__(
        self,
        urls: tuple[str, ...],
        options: StreamOptions,
        *,
        resume: bool,
        window_s: float,
        timeouts: ClientTimeouts,
        api_key: str | None = None,
    ) -> None:
        self._urls = urls
        self._options = options
        self._encoding = Encoding(options.encoding)
        self._early_final: Result | None = None  # of less than all the audio: an error is to follow
        self._whole_text = WholeText()
        self._want_resume = resume
        self._window_s = window_s
        self._timeouts = timeouts
        self._api_key = api_key
        self._identity = StreamIdentity(Handshake(self._open_channel, timeouts.connect_s))
        self._channel: Channel | None = None
        self._audio = SentAudio()
        self._last_seq = 0
        self._marks = Marks()
        self._final_asked = False
        self._final_written = False
        self._work = asyncio.Event()
        self._progress = asyncio.Event()
        self._results = ResultBuffer()
        self._heard_at = 0.0
        self._progress_at = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._outage = Outage(timeouts.resume_s, time.monotonic)
        self.num_resumptions = 0
        self._warnings: deque[WarningMessage] = deque(maxlen=100)

    # Opening and closing

    @property
    def stream_id(self) -> int:
        """The server's id of the stream."""
        return self._identity.hello.stream_id

    @property
    def sample_rate(self) -> int:
        """Rate of the audio that the server expects, Hz: that of the options, or else the server's."""
        return self._options.sample_rate or self._identity.hello.sample_rate

    @property
    def warnings(self) -> tuple[WarningMessage, ...]:
        """The last hundred warnings of the server, which are logged, too."""
        return tuple(self._warnings)

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Optional features of the server."""
        return self._identity.hello.capabilities

    async def open(self) -> None:
        """Connect and wait for `hello`; called by `connect`."""
        failure: ClientError = ConnectionLost("There is no address to connect to.")
        for url in self._urls:
            try:
                self._channel = await self._identity.begin(url)
                break
            except ClientError as error:
                failure = error
        if self._channel is None:
            raise failure
        if self._want_resume and "resume" in self._identity.hello.capabilities:
            self._audio.keep = True
            self._options = replace(self._options, resume=True)
        await self._identity.configure(self._channel, self._options)
        loop = asyncio.get_running_loop()
        self._heard_at = self._progress_at = loop.time()
        name = f"stream-{self.stream_id}"
        self._tasks = [
            asyncio.create_task(self._guard(self._read), name=f"{name}-read"),
            asyncio.create_task(self._guard(self._write), name=f"{name}-write"),
            asyncio.create_task(self._guard(self._watch), name=f"{name}-watch"),
        ]

    async def __aenter__(self) -> Self:
        """Return the stream itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the stream."""
        await self.close()

    async def close(self) -> None:
        """Leave the stream, finished or not. The server finalizes what was sent."""
        ended = self._results.ended
        # Callers that wait for results or for room shall not wait any longer.
        self._fail(ConnectionLost("The stream was closed before its final result."))
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        channel, self._channel = self._channel, None
        if channel is None:
            return
        try:
            if not ended:
                async with asyncio.timeout(self._timeouts.silence_s):
                    await channel.send(encode_client_message(Close()))
        except (ChannelLost, TimeoutError):
            pass
        await channel.close()

    # Audio

    async def send(self, payload: bytes, encoding: Encoding | None = None) -> None:
        """Send audio: mono samples at `sample_rate`, cut anywhere; in the options' encoding, or in another.

        Waits while too much is on its way. Raises ClientError when the stream has failed or was closed,
        ServerSilent when there is no room within the time-out.
        """
        if self._final_asked:
            raise ValueError("Audio after finish.")
        for block in self._audio.cut(payload, encoding or self._encoding):
            self._audio.append(block)
            self._work.set()
            await self._room()

    async def send_from(self, audio: Blocks) -> None:
        """Send all of an iterable or async iterable of blocks, and finish the stream.

        Blocks as for `send`, in the options' encoding. A plain iterable is asked in a thread.
        """
        async for block in as_async(audio):
            await self.send(block)
        await self.finish()

    def finalize(self) -> None:
        """Ask for a result of all audio so far, whose `from_finalize` is true; the stream goes on.

        After a lost connection it may be answered twice. Raises ServerError where the server has none.
        """
        self._mark("finalize", Finalize())

    def set_phrases(self, phrases: Sequence[Phrase | str]) -> None:
        """Replace the phrases that the speaker is likely to say, for the audio from here on.

        A string is a phrase with the server's boost. Those from the beginning are the option `phrases`.
        Raises ServerError where the server takes none.
        """
        listed = (Phrase(phrase) if isinstance(phrase, str) else phrase for phrase in phrases)
        self._mark("phrases", Phrases(tuple(listed)))

    def _mark(self, name: str, mark: Mark) -> None:
        if name not in self.capabilities:
            raise ServerError(ErrorCode.UNKNOWN_TYPE, f"The server does not know '{name}'.")
        if self._final_asked:
            raise ValueError(f"{name} after finish.")
        self._marks.add(self._audio.taken, mark)
        self._work.set()

    async def finish(self) -> None:
        """End the audio; the final result comes through `results`."""
        if self._audio.ends_within_a_sample:
            raise ValueError("The audio ends within a sample.")
        self._final_asked = True
        self._progress_at = asyncio.get_running_loop().time()
        self._work.set()

    async def _room(self) -> None:
        try:
            async with asyncio.timeout(self._timeouts.send_s):
                while not self._results.ended and not self._has_room():
                    self._progress.clear()
                    await self._progress.wait()
        except TimeoutError:
            raise ServerSilent(f"No room for audio within {self._timeouts.send_s:g} s.") from None
        if self._results.failure is not None:
            raise self._results.failure

    def _has_room(self) -> bool:
        return self._audio.has_room(self.sample_rate, self._window_s)

    # Results

    async def results(self) -> AsyncIterator[Result]:
        """Yield the results in order, each once; the last one has `is_final`. Raises ClientError.

        Read again after the end, it ends at once or raises the same error.
        """
        while (result := await self._results.next()) is not None:
            yield result

    async def final(self) -> Result:
        """Return the final result, skipping those before it; at once where it has been read.

        Raises ClientError.
        """
        async for _ in self.results():
            pass
        final = self._results.final
        assert final is not None  # results end with it, or raise
        return final

    # Tasks

    async def _guard(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run one task; its failure fails the stream."""
        try:
            await work()
        except ClientError as error:
            self._fail(error)
        except ChannelLost as error:
            self._fail(ConnectionLost(str(error)))
        except Exception as error:
            # Readers and senders wait for this task, so any exception is passed to them, as the cause.
            failure = ClientBug(f"The client failed: {error!r}.")
            failure.__cause__ = error
            self._fail(failure)

    def _fail(self, error: ClientError) -> None:
        self._results.fail(error)
        self._progress.set()

    async def _read(self) -> None:
        while not self._results.ended:
            channel = self._channel
            try:
                if channel is None:
                    raise ChannelLost("the connection was closed")
                message = decode_server_message(await channel.receive())
            except ChannelLost as error:
                if self._early_final is not None:
                    self._results.put(replace(self._early_final, is_final=False))
                    raise ConnectionLost(
                        "The server ended the stream before the end of its audio."
                    ) from error
                await self._recover(ConnectionLost(f"The connection was lost: {error}."))
                continue
            except ValueError as error:
                raise ConnectionLost(f"The server sent what is no message: {error}") from error
            self._heard_at = asyncio.get_running_loop().time()
            await self._heard(message)

    async def _heard(self, message: ServerMessage | None) -> None:
        match message:
            case Result():
                self._acknowledge(message.audio_ack_samples)
                if message.seq > self._last_seq:
                    self._last_seq = message.seq
                    if message.from_finalize:
                        self._marks.answered()
                    result = self._whole_text.of(message)
                    if result.is_final and not self._is_whole(result):
                        self._early_final = result
                    else:
                        self._results.put(result)
            case Ack(samples):
                self._acknowledge(samples)
            case WarningMessage(code, text):
                logger.warning("%s: %s", code, text, extra={"stream_id": self.stream_id})
                self._warnings.append(message)
            case ErrorMessage(code, text, _):
                resumes = self._audio.keep and self._early_final is None
                if resumes and retry_of(code) is Retry.RESUME:
                    await self._recover(ServerError(code, text))
                elif code not in (ErrorCode.UNKNOWN_TYPE, ErrorCode.AUDIO_AFTER_FINAL):
                    if self._early_final is not None:
                        self._results.put(replace(self._early_final, is_final=False))
                    raise ServerError(code, text)
            case _:
                pass  # pong, or a message of a newer server

    def _is_whole(self, final: Result) -> bool:
        """Whether a final result is that of all the audio; else the error follows that ended the stream."""
        return self._final_asked and final.audio_ack_samples >= self._audio.taken

    def _acknowledge(self, samples: int) -> None:
        self._progress_at = asyncio.get_running_loop().time()
        self._audio.decoded_up_to(samples)
        self._marks.decoded(samples)
        self._progress.set()

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            channel = self._channel
            while channel is not None and channel is self._channel:
                try:
                    if not await self._write_one(channel):
                        break
                except ChannelLost:
                    break  # the reader notices, and sets the work again once there is a new connection

    async def _write_one(self, channel: Channel) -> bool:
        mark = self._marks.due(self._audio.written)
        if mark is not None:
            await channel.send(encode_client_message(mark))
            if channel is self._channel:
                self._marks.sent()
            return True
        block = self._audio.next_block()
        if block is not None:
            await channel.send_audio(block.from_sample(self._audio.written), self._encoding)
            if channel is self._channel:
                self._audio.wrote(block)
                self._progress.set()
            return True
        if self._final_asked and not self._final_written:
            await channel.send_audio(Audio(b"", final=True), self._encoding)
            self._final_written = channel is self._channel
        return False

    async def _watch(self) -> None:
        """Probe a silent connection, and give up on a server that makes no progress."""
        loop = asyncio.get_running_loop()
        silence_s, final_s = self._timeouts.silence_s, self._timeouts.final_s
        while True:
            await asyncio.sleep(min(silence_s, final_s) / 4)
            now = loop.time()
            if not self._owes_progress():
                self._progress_at = now
            elif now - self._progress_at > final_s:
                raise ServerSilent(f"The server decoded nothing for {final_s:g} s, with audio to decode.")
            channel = self._channel
            if channel is None or now - self._heard_at < silence_s:
                continue
            if now - self._heard_at > 2 * silence_s:
                await channel.close()  # the reader finds it lost
            else:
                try:
                    async with asyncio.timeout(silence_s):
                        await channel.send(encode_client_message(Ping()))
                except (ChannelLost, TimeoutError):
                    await channel.close()

    def _owes_progress(self) -> bool:
        """Whether the server has so much to do that it must report progress within `final_s`."""
        if self._results.ended:
            return False
        return self._final_asked or self._audio.undecoded > _UNANSWERED_S * self.sample_rate

    # Connections

    async def _open_channel(self, url: str) -> Channel:
        """Return a socket to a server; the chaos tests listen in here."""
        return await open_channel(url, self._timeouts.connect_s, self._api_key)

    async def _recover(self, cause: ServerError | ConnectionLost) -> None:
        """Resume the stream on a new connection. Raises the cause where that does not succeed in time."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
        if not self._audio.keep:
            raise cause
        about = {"stream_id": self.stream_id}
        logger.warning("%s Trying again for %g s.", cause, self._timeouts.resume_s, extra=about)
        failure: ClientError = cause
        self._outage.lost((self._last_seq, self._audio.decoded))
        while await self._outage.pause():
            for url in filter(self._outage.may_ask, self._urls):
                try:
                    channel, self._audio.written = await self._go_on_at(url)
                except ClientError as error:
                    if isinstance(error, ServerError) and retry_of(error.code) not in _STILL_WAITS:
                        raise
                    failure = error
                    self._outage.refused(url, error.retry_after_s)
                    continue
                self._outage.resumed()
                self._final_written = False
                self._marks.repeat()
                self._channel = channel
                self._heard_at = self._progress_at = asyncio.get_running_loop().time()
                self.num_resumptions += 1
                logger.info("the stream goes on at %s", url, extra=about)
                self._work.set()
                return
        told = f"The stream was not resumed within {self._timeouts.resume_s:g} s: {failure}"
        if isinstance(cause, ServerError):
            raise ServerError(cause.code, f"{cause.message} {told}")
        raise ConnectionLost(f"{cause} {told}")

    async def _go_on_at(self, url: str) -> tuple[Channel, int]:
        """Resume the stream at an address; return the connection and the sample to go on with.

        A server that dies right after its hello may never have begun the stream: as long as nothing of it
        has come back, another stream with all of the audio is the same to the caller.
        """
        decoded = min(self._audio.decoded, self._audio.written)
        try:
            return await self._identity.resume(url, self._last_seq, decoded)
        except ServerError as error:
            if error.code != ErrorCode.RESUME_REFUSED or self._last_seq or self._audio.decoded:
                raise
            channel = await self._identity.begin_anew(url, self._options)
            if channel is None:
                raise
            return channel, 0
