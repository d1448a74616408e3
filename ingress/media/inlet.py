"""Compressed audio of a live connection on its way to samples, in order with the client's messages.

A child process decodes (decoder.py). Its output has no marks, so a message behind audio waits until the child
has written nothing for a while: then the audio before the message is decoded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import Final, Protocol

from common.errors import ClientFault, ErrorCode, InternalFault, StreamError, Unavailable
from common.messages import Audio, ClientMessage, Close
from ingress.media.child import RAW_OPUS
from ingress.media.decoder import Decoder, Decoders, DecodersBusy, MediaError, MediaInput
from ingress.media.formats import HEAD_BYTES, STREAMED_NAMES, sniff
from ingress.media.wanted import Media, MediaWanted

logger = logging.getLogger(__name__)

# Bytes that wait here for the child; beyond them the client is not read.
_MAX_WAITING_BYTES: Final = 64 << 10
# Overhead of a message beside its bytes, of which it may have none.
_MESSAGE_BYTES: Final = 64
_PIECE_BYTES: Final = 16 << 10
# A child that sleeps, and has written nothing for this long, has decoded its input: a packet takes a
# millisecond.
_QUIET_S: Final = 0.1
# Longest wait for a child that does not get to sleep, and time between two looks.
_SETTLE_S: Final = 10.0
_LOOK_S: Final = 0.01
# A child starts within half a second, but a container may need more of its audio before the first sample.
_BEGIN_S: Final = 5.0
# Messages that may come before the first sample, whose rate they wait for.
_MAX_EARLY: Final = 100
_OPUS_RATE: Final = 48_000


class MediaSink(Protocol):
    """The receiver of the samples: the connection."""

    @property
    def takes_audio(self) -> bool:
        """Whether it accepts audio now; after a False it calls `MediaInlet.room` when it does again."""

    def decodes_at(self, sample_rate: int) -> None:
        """Note that samples of this rate, in Hz, will come."""

    def received_decoded(self, message: ClientMessage) -> None:
        """Take samples, or a message of the client that followed them."""

    def received_fault(self, error: StreamError) -> None:
        """Take the fault after which nothing more comes."""

    def on_media_room(self) -> None:
        """Note that the client may be read again."""


class MediaInlet:
    """The compressed audio of one connection. Made on the event loop; `close` ends it.

    It reserves one of the children that an ingress may run, until it is parked. The constructor raises
    Unavailable `no_free_stream` where no child is left.
    """

    __slots__ = (
        "_decoder",
        "_decoders",
        "_early",
        "_head",
        "_holds_place",
        "_items",
        "_knows_rate",
        "_news",
        "_reader",
        "_sink",
        "_spoke_at",
        "_task",
        "_waiting_bytes",
        "_wanted",
    )

    def __init__(self, decoders: Decoders, wanted: MediaWanted, sink: MediaSink) -> None:
        self._decoders = decoders
        self._wanted = wanted
        self._sink = sink
        self._holds_place = False
        self._hold_place()
        self._items: deque[tuple[Media | ClientMessage, int]] = deque()  # each with the bytes that it counts
        self._waiting_bytes = 0
        # Messages before the rate of the samples is known: a stream that they begin would have another one.
        self._early: deque[ClientMessage] = deque()
        self._knows_rate = wanted.packets
        if wanted.packets:
            sink.decodes_at(_OPUS_RATE)
        self._head = b""  # first bytes of a container that is not recognised yet
        self._decoder: Decoder | None = None
        self._reader: asyncio.Task[None] | None = None
        self._spoke_at: float | None = (
            None  # when samples last came, or could have come; None before the first
        )
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = asyncio.create_task(self._run(), name="media-inlet")

    @property
    def is_full(self) -> bool:
        """Whether the client should not be read for now."""
        return self._waiting_bytes > _MAX_WAITING_BYTES

    def take(self, item: Media | ClientMessage, num_bytes: int) -> None:
        """Take the client's next item, which has `num_bytes` bytes."""
        if self._task is None:
            return
        cost = num_bytes + _MESSAGE_BYTES
        self._items.append((item, cost))
        self._waiting_bytes += cost
        self._news.set()

    def room(self) -> None:
        """Note that the sink may take audio again."""
        self._news.set()

    def park(self) -> None:
        """Return the reserved child, if none was started: the client has sent nothing for long."""
        if self._holds_place:
            self._holds_place = False
            self._decoders.let_go()

    def _hold_place(self) -> None:
        if self._holds_place:
            return
        try:
            self._decoders.hold()
        except DecodersBusy as error:
            raise Unavailable(ErrorCode.NO_FREE_STREAM, str(error)) from None
        self._holds_place = True

    def close(self) -> None:
        """End the decoding, whatever it is doing."""
        self.park()  # here, since a task that is cancelled before its first step does nothing at all
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def _run(self) -> None:
        try:
            await self._serve()
        except MediaError as error:
            self._sink.received_fault(ClientFault(ErrorCode.WRONG_ENCODING, str(error)))
        except StreamError as error:
            self._sink.received_fault(error)
        except Exception:
            logger.exception("a live input could not be decoded")
            self._sink.received_fault(InternalFault())
        finally:
            self._task = None
            self._items.clear()
            self._let_in(self._waiting_bytes)
            await self._tidy_up()

    async def _tidy_up(self) -> None:
        self.park()
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)  # its exception has been reported
        if self._decoder is not None:
            await self._decoder.close()

    async def _serve(self) -> None:
        while self._task is not None:  # the sink may close this object when it receives an item
            while not self._items:
                self._raise_if_failed()
                await self._wait()
            item, cost = self._items[0]
            if isinstance(item, Media):
                await self._feed(item.data)
            elif isinstance(item, Close):
                await self._end()
                self._early.append(item)
                await self._tell_early()
                return
            else:
                await self._settle()
                await self._tell(item)
            self._items.popleft()
            self._let_in(cost)

    async def _tell(self, message: ClientMessage) -> None:
        """Hand a message on, now or with the first samples. Raises ClientFault where too many wait."""
        if len(self._early) >= _MAX_EARLY:
            raise ClientFault(
                ErrorCode.TOO_MUCH_AUDIO, f"More than {_MAX_EARLY} messages wait for audio: send audio first."
            )
        self._early.append(message)
        if self._knows_rate:
            await self._tell_early()

    async def _tell_early(self) -> None:
        while self._early:
            await self._until_taken()
            if self._early:  # else the other task has handed it on
                self._sink.received_decoded(self._early.popleft())

    async def _until_taken(self) -> None:
        """Wait until the sink takes audio, and messages as well: it may wait for its streams."""
        while not self._sink.takes_audio:
            await self._wait()

    def _let_in(self, num_bytes: int) -> None:
        """Subtract bytes that wait no more; the client may be read again."""
        was_full = self.is_full
        self._waiting_bytes -= num_bytes
        if was_full and not self.is_full:
            self._sink.on_media_room()

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _raise_if_failed(self) -> None:
        if self._reader is not None and self._reader.done():
            self._reader.result()

    async def _feed(self, data: bytes) -> None:
        if self._decoder is not None:
            await self._pour(self._decoder, data)
            return
        self._head += data
        media = self._input()
        if media is not None:
            await self._begin(media)

    async def _begin(self, media: MediaInput) -> None:
        """Start the child, and feed it the bytes that came before the format was known."""
        self._hold_place()
        self._holds_place = False  # it is the child's from here on
        decoder = self._decoder = await self._decoders.start(media, held=True)
        self._reader = asyncio.create_task(self._read(decoder), name="media-samples")
        self._reader.add_done_callback(lambda _: self._news.set())
        head, self._head = self._head, b""
        await self._pour(decoder, head)

    async def _pour(self, decoder: Decoder, data: bytes) -> None:
        for at in range(0, len(data), _PIECE_BYTES):
            self._raise_if_failed()
            await decoder.feed(data[at : at + _PIECE_BYTES])
        if self._spoke_at is not None:
            self._spoke_at = asyncio.get_running_loop().time()

    def _input(self, *, at_end: bool = False) -> MediaInput | None:
        """Return the input to decode; None until the first bytes show its format. Raises ClientFault."""
        wanted = self._wanted
        if wanted.packets:
            return MediaInput(RAW_OPUS, mix=wanted.mix, channels=wanted.channels)
        if wanted.demuxer:
            return MediaInput(wanted.demuxer, mix=wanted.mix)
        if len(self._head) < HEAD_BYTES and not at_end:
            return None
        media = sniff(self._head)
        if media is None or media.seeks:
            raise ClientFault(
                ErrorCode.WRONG_ENCODING,
                f"Without 'encoding' the audio is one of {', '.join(STREAMED_NAMES)}; this is none.",
            )
        return MediaInput(media.demuxer, mix=wanted.mix)

    async def _read(self, decoder: Decoder) -> None:
        """Hand samples on as they come. Raises MediaError."""
        loop = asyncio.get_running_loop()
        audio = await decoder.audio()
        channels = 1 if self._wanted.mix else self._wanted.channels
        if audio.channels != channels:
            raise MediaError(f"The media has {audio.channels} channels, and the query says {channels}.")
        self._sink.decodes_at(audio.rate)
        self._knows_rate = True
        await self._tell_early()
        frame_bytes = 2 * channels
        rest = b""
        self._spoke_at = loop.time()
        self._news.set()
        async with contextlib.aclosing(decoder.blocks()) as blocks:
            async for block in blocks:
                data = rest + block
                whole = len(data) - len(data) % frame_bytes
                rest = data[whole:]
                if not self._sink.takes_audio:
                    self._spoke_at = None  # samples would go on coming
                    await self._until_taken()
                self._sink.received_decoded(Audio(data[:whole]))
                self._spoke_at = loop.time()
                self._news.set()

    async def _settle(self) -> None:
        """Wait until all fed bytes are decoded and handed on."""
        if self._decoder is None:
            return
        await self._until_taken()  # the time in which nothing is taken is not the child's
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + _SETTLE_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BEGIN_S) as begins:
                while True:
                    self._raise_if_failed()
                    spoke_at = self._spoke_at
                    if spoke_at is None:
                        await self._wait()
                        continue
                    begins.reschedule(None)
                    left_s = spoke_at + _QUIET_S - loop.time()
                    if left_s > 0:
                        await asyncio.sleep(left_s)  # no event says that no samples come
                        continue
                    is_working = self._decoder.is_working
                    await asyncio.sleep(_LOOK_S)  # in which this loop reads what the child has written
                    if not is_working and self._spoke_at == spoke_at:
                        return
                    if loop.time() > ends_at:
                        return

    async def _end(self) -> None:
        """End the input, and wait until all of it is decoded and handed on."""
        if self._head:
            media = self._input(at_end=True)
            assert media is not None
            await self._begin(media)
        if self._decoder is not None and self._reader is not None:
            self._decoder.end_input()
            await self._reader
