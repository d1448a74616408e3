"""The streams of a connection, one for each channel of its audio: their slots, their audio and their ends.

A slot is a place for a stream in the cluster; it counts towards the streams that the client's key may have.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from common.entries import LineKind, StreamId
from common.errors import ClientFault, ErrorCode, StreamError
from common.messages import Audio, Hello, Phrases, Result, Resume, Resumed
from common.options import StreamOptions
from ingress.auth.client import Client
from ingress.auth.guard import Guard
from ingress.backplane import CLIENT_GONE, FINAL, NOBODY, Backplane, Caller, Resumption, StreamLink
from ingress.capabilities import CAPABILITIES
from ingress.protocol import Event

if TYPE_CHECKING:
    from ingress.clients.connection import Connection

# Looking up a member of an enum costs a call in Python 3.11.
_PARTIAL: Final = LineKind.PARTIAL
_FINAL: Final = LineKind.FINAL
_FINALIZED: Final = LineKind.FINALIZED

MAX_WAITING_PHRASES: Final = 100
"""Most `phrases` messages that wait for the audio before them: each has no samples, and up to 16 KB."""


class ClientStream:
    """One stream of a connection (a `StreamListener`).

    number: its number among the streams of its connection, from 0.
    max_undecoded_s, max_undecoded_samples: most audio that is accepted and not decoded.
    sample_rate: rate of its audio, Hz.
    max_finalizes: most `finalize` messages without an answer: they have no samples, so `max_undecoded_s` does
        not bound them, and each ends a part of the stream.
    link: the link to the admitted stream; None before admission, and after the stream is given up.
    stream_id, resume_token: those of the last link, for logs, and for a slot that was returned.
    next_sample: samples accepted so far = position of the next audio's first sample.
    acked_samples: samples decoded so far, as the worker reports.
    """

    __slots__ = (
        "_connection",
        "_max_finalizes",
        "_max_undecoded_s",
        "_num_finalizes",
        "_phrases_at",
        "acked_samples",
        "ended",
        "link",
        "max_undecoded_samples",
        "next_sample",
        "number",
        "resume_token",
        "sample_rate",
        "stream_id",
    )

    def __init__(
        self,
        connection: Connection,
        number: int,
        max_undecoded_s: float,
        sample_rate: int,
        max_finalizes: int,
    ) -> None:
        self._connection: Final = connection
        self._max_finalizes: Final = max_finalizes
        self._max_undecoded_s: Final = max_undecoded_s
        self._num_finalizes = 0  # without an answer
        self._phrases_at: deque[int] = deque()  # samples before each list of phrases that waits
        self.number: Final = number
        self.sample_rate = 0
        self.set_rate(sample_rate)
        self.link: StreamLink | None = None
        self.stream_id: StreamId | None = None
        self.resume_token = ""
        self.next_sample = 0
        self.acked_samples = 0
        self.ended = False  # its last result, or its error, has come

    def set_rate(self, sample_rate: int) -> None:
        """Set a rate other than that of `hello`, before any audio has come."""
        self.sample_rate = sample_rate
        self.max_undecoded_samples = round(self._max_undecoded_s * sample_rate)

    def linked(self) -> StreamLink:
        """Return the link, which has to be there."""
        if self.link is None:
            raise AssertionError("an action on a stream that is not there")
        return self.link

    def attach(self, link: StreamLink) -> None:
        """Set the link of an admitted stream."""
        self.link = link
        self.stream_id, self.resume_token = link.stream, link.resume_token

    def too_much_audio(self) -> ClientFault:
        """Return the fault for more audio than may wait."""
        return ClientFault(
            ErrorCode.TOO_MUCH_AUDIO,
            f"More than {self.max_undecoded_samples} samples of audio wait to be decoded: "
            "send audio more slowly, or wait for results.",
        )

    def hello(self) -> Hello:
        """Return the first message to the client."""
        link = self.linked()
        return Hello(link.stream, self.sample_rate, link.resume_token, CAPABILITIES)

    def welcome(self) -> Resumed:
        """Return the message that tells the client that its stream goes on here."""
        link = self.linked()
        return Resumed(link.stream, link.resume_token, self.next_sample)

    def begin(self, options: StreamOptions) -> None:
        """Create the stream."""
        if options.sample_rate is not None:
            self.set_rate(options.sample_rate)
        self.linked().begin(options)

    def resumed(self, resumption: Resumption) -> None:
        """Go on with what another connection began."""
        self.set_rate(resumption.sample_rate)
        self.next_sample, self.acked_samples = resumption.next_sample, resumption.acked_samples
        # Also of earlier connections: otherwise each resume would permit as many again.
        self._phrases_at.extend([resumption.next_sample] * resumption.num_marks)

    def append(self, audio: Audio) -> bool:
        """Append audio to the stream; return False if the caller has to stop reading until `on_room`."""
        self.next_sample += audio.num_samples
        return self.linked().append(audio)

    def finalize(self) -> bool:
        """Request a result of all audio so far; return False as `append` does.

        Raises ClientFault `too_much_audio` where too many requests wait for their answers.
        """
        if self._num_finalizes >= self._max_finalizes:
            raise ClientFault(
                ErrorCode.TOO_MUCH_AUDIO,
                f"More than {self._max_finalizes} 'finalize' messages wait for answers: wait for one first.",
            )
        self._num_finalizes += 1
        return self.linked().finalize()

    def confirm(self) -> None:
        """Note that the client has received its new resume token."""
        if self.link is not None:
            self.link.confirm()

    def replace_phrases(self, change: Phrases) -> bool:
        """Replace the stream's phrases from the end of its audio so far on; return False as `append` does.

        Raises ClientFault `too_much_audio` where too many lists wait for audio behind them.
        """
        waiting = self._phrases_at
        while waiting and waiting[0] < self.acked_samples:
            waiting.popleft()
        if len(waiting) >= MAX_WAITING_PHRASES:
            raise ClientFault(
                ErrorCode.TOO_MUCH_AUDIO,
                f"More than {MAX_WAITING_PHRASES} 'phrases' messages wait for audio: send audio first.",
            )
        waiting.append(self.next_sample)
        return self.linked().replace_phrases(change)

    def abandon(self, *, keep: bool, code: str = CLIENT_GONE) -> None:
        """End streams that no client listens to any more; see `StreamLink.abandon`."""
        link, self.link = self.link, None
        if link is not None:
            link.abandon(keep=keep, code=code)

    def release(self, *, code: str = FINAL) -> None:
        """Note that the end of the stream has been sent."""
        link, self.link = self.linked(), None
        link.release(code=code)

    # StreamListener

    @property
    def received_s(self) -> float:
        """Audio accepted from the client so far, in seconds."""
        return self.next_sample / self.sample_rate

    @property
    def undecoded_s(self) -> float:
        """Audio accepted from the client and not decoded yet, in seconds."""
        return (self.next_sample - self.acked_samples) / self.sample_rate

    def on_result(self, kind: LineKind, result: Result) -> None:
        """Send a result to the client."""
        if result.audio_ack_samples > self.acked_samples:
            self.acked_samples = result.audio_ack_samples
        if kind is _FINAL:
            self.ended = True
        elif kind is _FINALIZED and self._num_finalizes:  # else it answers an earlier connection
            self._num_finalizes -= 1
        self._connection.on_result(self, result, mergeable=kind is _PARTIAL)

    def on_ack(self, samples: int) -> None:
        """Note progress without a result."""
        if samples > self.acked_samples:
            self.acked_samples = samples
            self._connection.on_ack(self, samples)

    def on_error(self, error: StreamError) -> None:
        """Take the error with which the worker ended the stream."""
        self.ended = True
        self._connection.notify(Event.STREAM_FAILED, error)

    def on_failure(self, error: StreamError) -> None:
        """Receive the error for which the service cannot go on with the stream."""
        self._connection.notify(Event.FAILED, error)

    def on_taken(self) -> None:
        """Another connection has resumed the stream."""
        self.link = None
        self._connection.notify(Event.TAKEN)

    def on_room(self) -> None:
        """Note that there is room for audio again."""
        self._connection.reading.resume()


class ClientStreams:
    """The streams of one connection.

    streams: at least one.   num_streams: their number.
    first: stands for all of them in what they have in common, such as the length of audio.
    guard: checks and counts the use of the client's key.
    client: the authenticated client; None as long as it is unknown.
    traceparent: the trace that the client's request is a part of; empty for none.
    """

    __slots__ = (
        "_backplane",
        "_counted",
        "_guard",
        "_left",
        "_streams",
        "_traceparent",
        "client",
        "first",
        "num_streams",
    )

    def __init__(
        self,
        streams: Sequence[ClientStream],
        backplane: Backplane,
        guard: Guard,
        client: Client | None,
        traceparent: str,
    ) -> None:
        self._streams: Final = streams
        self.first: Final = streams[0]
        self.num_streams: Final = len(streams)
        self._backplane = backplane
        self._guard = guard
        self._traceparent = traceparent
        self._counted = 0  # streams that count for the client's key
        self._left = False
        self.client = client

    # Slots

    def identify(self, secret: str) -> None:
        """Authenticate the client by a key. Raises StreamError `unauthorized`."""
        self.client = self._guard.identify(secret)

    async def count(self) -> None:
        """Count the streams for the client's key, once a connection: returned slots stay counted.

        Raises StreamError.
        """
        if self._counted:
            return
        await self._guard.enter(self.client, self.num_streams)
        if self._left:  # meanwhile
            self._guard.leave(self.client, self.num_streams)
        else:
            self._counted = self.num_streams

    async def admit(self) -> None:
        """Take a slot for each stream: a new one, or the slot of `hello` again where it was returned.

        Raises StreamError; no slot is held then.
        """
        caller = self._caller
        try:
            for stream in self._streams:
                if stream.stream_id is None:
                    stream.attach(await self._backplane.admit(stream, caller))
                else:
                    stream.attach(
                        await self._backplane.readmit(stream, stream.stream_id, stream.resume_token, caller)
                    )
        except BaseException:
            self.abandon(keep=False)
            raise

    async def resume(self, request: Resume) -> Resumption:
        """Take the slot of another connection's stream instead. Raises StreamError."""
        (stream,) = self._streams
        resumption = await self._backplane.resume(stream, request, self._caller)
        stream.abandon(keep=False)  # the slot that this connection's own `hello` offered
        stream.attach(resumption.link)
        return resumption

    def resumed(self, resumption: Resumption) -> None:
        """Note that another connection's stream goes on here; count it if a new stream was refused before."""
        self.first.resumed(resumption)
        if not self._counted:
            self._counted = 1
            self._guard.resumed(self.client, 1)

    def leave(self) -> None:
        """Note that the connection is over."""
        self._left = True
        if self._counted:
            self._guard.leave(self.client, self._counted)

    @property
    def _caller(self) -> Caller:
        """Return the client that asks for the streams."""
        client = self.client
        if client is None:
            return NOBODY
        return Caller(client.key_id or "", client.name, self._traceparent)

    # Streams

    def __iter__(self) -> Iterator[ClientStream]:
        return iter(self._streams)

    @property
    def ended(self) -> bool:
        """Whether the last result or the error of each stream has come."""
        return all(stream.ended for stream in self._streams)

    def begin(self, options: StreamOptions) -> None:
        """Create the streams."""
        for stream in self._streams:
            stream.begin(options)

    def append(self, audio: Audio) -> bool:
        """Append audio with interleaved channels; return False as `ClientStream.append` does."""
        if self.num_streams == 1:
            return self.first.append(audio)
        has_room = True
        for stream, part in zip(self._streams, split_channels(audio, self.num_streams), strict=True):
            has_room &= stream.append(part)
        return has_room

    def finalize(self) -> bool:
        """Request a result of each stream's audio so far; see `ClientStream.finalize`."""
        has_room = True
        for stream in self._streams:
            has_room &= stream.finalize()
        return has_room

    def replace_phrases(self, change: Phrases) -> bool:
        """Replace the phrases of each. Returns and raises as `ClientStream.replace_phrases` does."""
        has_room = True
        for stream in self._streams:
            has_room &= stream.replace_phrases(change)
        return has_room

    def abandon(self, *, keep: bool, code: str = CLIENT_GONE) -> None:
        """End streams that no client listens to any more; see `StreamLink.abandon`."""
        for stream in self._streams:
            stream.abandon(keep=keep, code=code)

    def release(self, code: str = FINAL) -> None:
        """Note that the end has been sent; give up the streams that have not ended."""
        for stream in self._streams:
            if not stream.ended:
                stream.abandon(keep=False, code=code)
            elif stream.link is not None:
                stream.release(code=code)


def split_channels(audio: Audio, num_channels: int) -> list[Audio]:
    """Return the audio of each channel. audio: interleaved samples of `num_channels` channels."""
    payload, size = audio.payload, audio.encoding.sample_bytes
    step = size * num_channels
    channels = []
    for channel in range(num_channels):
        part = bytearray(len(payload) // num_channels)
        for at in range(size):
            part[at::size] = payload[channel * size + at :: step]
        channels.append(Audio(bytes(part), audio.encoding, audio.final))
    return channels
