"""What a connection needs from the service behind it, as interfaces.

ingress/streams/redis_backplane.py implements them over Redis; the unit tests implement them in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from common.entries import LineKind, StreamId
from common.errors import StreamError
from common.messages import Audio, Phrases, Result, Resume
from common.options import StreamOptions


@dataclass(frozen=True, slots=True)
class Caller:
    """Whose a stream is.

    key_id: of its API key, empty for none; a resume has to come with the same one.
    key_name: what the log calls the key.
    traceparent: the trace that its request is a part of (W3C Trace Context), empty for none.
    """

    key_id: str = ""
    key_name: str = ""
    traceparent: str = ""


NOBODY: Final = Caller()

FINAL: Final = "final"
"""Why a stream ended, for the log: its final result was sent."""
CLIENT_GONE: Final = "client_gone"
"""Its client left it. Any other reason is the code of an error."""


class StreamListener(Protocol):
    """The connection's side: who is told what happens to a stream. All calls come on the event loop."""

    @property
    def undecoded_s(self) -> float:
        """Audio accepted from the client and not decoded yet, in seconds."""

    def on_result(self, kind: LineKind, result: Result) -> None:
        """Take a result for the client, in order and once: PARTIAL, TURN or FINAL."""

    def on_error(self, error: StreamError) -> None:
        """Take the error with which a worker has ended the stream."""

    def on_ack(self, samples: int) -> None:
        """Note that the first `samples` samples are decoded, and that no result said so."""

    def on_failure(self, error: StreamError) -> None:
        """End the stream, which cannot go on."""

    def on_taken(self) -> None:
        """Another connection has resumed the stream."""

    def on_room(self) -> None:
        """`StreamLink.append` said that its buffer was full; it has drained."""


class StreamLink(Protocol):
    """The backplane's side: one admitted stream."""

    @property
    def stream(self) -> StreamId:
        """The stream's id."""

    @property
    def resume_token(self) -> str:
        """The secret that `hello` gives to the client."""

    def begin(self, options: StreamOptions) -> None:
        """Create the stream. Failures come as `on_failure`."""

    def append(self, audio: Audio) -> bool:
        """Append the stream's next audio; False asks to stop reading until `on_room`."""

    def finalize(self) -> bool:
        """Ask for a result of all audio so far; False asks to stop reading until `on_room`."""

    def replace_phrases(self, change: Phrases) -> bool:
        """Replace the stream's phrases behind its audio; False asks to stop reading until `on_room`."""

    def confirm(self) -> None:
        """Note that the client has the secret of its resumption: the one before is good no more."""

    def abandon(self, *, keep: bool, code: str = CLIENT_GONE) -> None:
        """End the stream, to which nobody listens any more: now, or after the grace if `keep`.

        Where no stream has begun, the admission is given back. `code`: why, for the log.
        """

    def release(self, *, code: str = FINAL) -> None:
        """Give the slot back: the end of the stream has been sent. `code`: why it ended, for the log."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """A stream taken over from another connection.

    next_sample: first sample that is not in Redis yet.   acked_samples: samples decoded so far.
    finished: its audio had been finished already.
    options, sample_rate (Hz): those it was begun with.
    """

    link: StreamLink
    next_sample: int
    acked_samples: int
    finished: bool
    options: StreamOptions
    sample_rate: int


class Backplane(Protocol):
    """The service behind a connection."""

    async def admit(self, listener: StreamListener, caller: Caller = NOBODY) -> StreamLink:
        """Ask the cluster for a stream.

        Raises NoFreeStream, NoWorker or RedisUnavailable, within a bounded time.
        """

    async def readmit(
        self, listener: StreamListener, stream: StreamId, resume_token: str, caller: Caller = NOBODY
    ) -> StreamLink:
        """Ask the cluster for the slot of a stream anew: it was given back before the stream began.

        Raises as `admit` does, within a bounded time.
        """

    async def resume(self, listener: StreamListener, request: Resume, caller: Caller = NOBODY) -> Resumption:
        """Take a stream over from a connection that was lost.

        The results after `last_seq` come through the listener once this has returned.
        Raises Unavailable (`resume_refused`, `redis_unavailable`, `internal`), within a bounded time.
        """
