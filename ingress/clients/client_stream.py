"""One stream of a connection: its link to the service, and the count of its audio."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from common.entries import LineKind, StreamId
from common.errors import ClientFault, ErrorCode, StreamError
from common.messages import Audio, Hello, Phrases, Result, Resumed
from common.options import StreamOptions
from ingress.backplane import CLIENT_GONE, FINAL
from ingress.capabilities import CAPABILITIES
from ingress.protocol import Event

if TYPE_CHECKING:
    from ingress.backplane import Resumption, StreamLink
    from ingress.clients.connection import Connection

# A look into an enum is a call in Python 3.11.
_PARTIAL: Final = LineKind.PARTIAL
_FINAL: Final = LineKind.FINAL
_FINALIZED: Final = LineKind.FINALIZED

MAX_WAITING_PHRASES: Final = 100
"""`phrases` messages behind which no audio is decoded yet: they have no samples, and 16 KB each."""


class ClientStream:
    """One stream of a connection (a `StreamListener`).

    number: among the streams of its connection, from 0.
    max_undecoded_s, max_undecoded_samples: audio that it may have, accepted and not decoded.
    sample_rate: of its audio, Hz.
    max_finalizes: those that may wait for their answers: they have no samples, so `max_undecoded_s` does not
        bound them, and each ends a part of the stream.
    link: to the admitted stream; None before, and where it is given up.
    stream_id, resume_token: of the last link, for logs, and for a slot that was given back.
    next_sample: samples accepted so far = position of the next audio's first sample.
    acked_samples: samples decoded so far, as the worker says.
    """

    __slots__ = (
        "_connection",
        "_max_finalizes",
        "_max_undecoded_s",
        "_num_finalizes",
        "_phrases_at",
        "acked_samples",
        "begun",
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
        self._num_finalizes = 0  # that are not answered
        self._phrases_at: deque[int] = deque()  # samples before each list that waits
        self.number: Final = number
        self.sample_rate = 0
        self.set_rate(sample_rate)
        self.link: StreamLink | None = None
        self.stream_id: StreamId | None = None
        self.resume_token = ""
        self.next_sample = 0
        self.acked_samples = 0
        self.begun = False  # its client has sent something
        self.ended = False  # its last result, or its error, has come

    def set_rate(self, sample_rate: int) -> None:
        """Have audio of another rate than that of `hello`, before there is any."""
        self.sample_rate = sample_rate
        self.max_undecoded_samples = round(self._max_undecoded_s * sample_rate)

    def linked(self) -> StreamLink:
        """Return the link, which is there."""
        if self.link is None:
            raise AssertionError("an action on a stream that is not there")
        return self.link

    def attach(self, link: StreamLink) -> None:
        """Have a link from here on."""
        self.link = link
        self.stream_id, self.resume_token = link.stream, link.resume_token

    def too_much_audio(self) -> ClientFault:
        """Return the fault of audio for which there is no room."""
        return ClientFault(
            ErrorCode.TOO_MUCH_AUDIO,
            f"More than {self.max_undecoded_samples} samples of audio wait to be decoded: "
            "send audio more slowly, or wait for results.",
        )

    def hello(self) -> Hello:
        """Return what its client is told first."""
        link = self.linked()
        return Hello(link.stream, self.sample_rate, link.resume_token, CAPABILITIES)

    def welcome(self) -> Resumed:
        """Return what its client is told once the stream goes on here."""
        link = self.linked()
        return Resumed(link.stream, link.resume_token, self.next_sample)

    def begin(self, options: StreamOptions) -> None:
        """Create the stream."""
        self.begun = True
        if options.sample_rate is not None:
            self.set_rate(options.sample_rate)
        self.linked().begin(options)

    def resumed(self, resumption: Resumption) -> None:
        """Go on with what another connection began."""
        self.begun = True
        self.set_rate(resumption.sample_rate)
        self.next_sample, self.acked_samples = resumption.next_sample, resumption.acked_samples

    def append(self, audio: Audio) -> bool:
        """Append audio to the stream; False asks to stop reading until `on_room`."""
        self.next_sample += audio.num_samples
        return self.linked().append(audio)

    def finalize(self) -> bool:
        """Ask for a result of all audio so far; False asks to stop reading until `on_room`.

        Raises ClientFault `too_much_audio` where too many wait for their answers.
        """
        if self._num_finalizes >= self._max_finalizes:
            raise ClientFault(
                ErrorCode.TOO_MUCH_AUDIO,
                f"More than {self._max_finalizes} 'finalize' messages wait for answers: wait for one first.",
            )
        self._num_finalizes += 1
        return self.linked().finalize()

    def confirm(self) -> None:
        """Note that the client has the secret that its resumption has brought."""
        if self.link is not None:
            self.link.confirm()

    def replace_phrases(self, change: Phrases) -> bool:
        """Replace the stream's phrases behind its audio so far; False asks to stop reading until `on_room`.

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
        """Nobody listens any more; see `StreamLink.abandon`."""
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
        elif kind is _FINALIZED and self._num_finalizes:  # else one of a connection before
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
        """End the stream: the service cannot go on with it."""
        self._connection.notify(Event.FAILED, error)

    def on_taken(self) -> None:
        """Another connection has resumed the stream."""
        self.link = None
        self._connection.notify(Event.TAKEN)

    def on_room(self) -> None:
        """There is room again for audio."""
        self._connection.reading.resume()
