"""The interfaces between a connection and the service behind it.

ingress/streams/redis_backplane.py implements them over Redis; the unit tests implement them in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from common.entries import LineKind, StreamId
from common.errors import StreamError
from common.languages import Languages
from common.messages import Audio, Phrases, Result, Resume
from common.options import StreamOptions


@dataclass(frozen=True, slots=True)
class Caller:
    """The client that asks for a stream.

    key_id: id of its API key, empty for none; a resume has to come with the same key.
    key_name: name of the key, for logs.
    traceparent: the trace that the request is a part of (W3C Trace Context), empty for none.
    """

    key_id: str = ""
    key_name: str = ""
    traceparent: str = ""


NOBODY: Final = Caller()

FINAL: Final = "final"
"""Reason for the end of a stream, for the log: its final result was sent."""
CLIENT_GONE: Final = "client_gone"
"""Reason for the end of a stream: its client left. Any other reason is the code of an error."""


class StreamListener(Protocol):
    """The connection's side: receives the events of one stream. All calls come on the event loop."""

    @property
    def undecoded_s(self) -> float:
        """Audio accepted from the client and not decoded yet, in seconds."""

    def on_result(self, kind: LineKind, result: Result) -> None:
        """Receive a result for the client, in order and once; `kind` is PARTIAL, TURN or FINAL."""

    def on_error(self, error: StreamError) -> None:
        """Receive the error with which a worker has ended the stream."""

    def on_ack(self, samples: int) -> None:
        """Receive progress that no result reports: the first `samples` samples are decoded."""

    def on_failure(self, error: StreamError) -> None:
        """Receive the error for which the stream cannot go on."""

    def on_taken(self) -> None:
        """Another connection has resumed the stream."""

    def on_room(self) -> None:
        """Note that the buffer which `StreamLink.append` reported as full has drained."""


class StreamLink(Protocol):
    """The backplane's side: one admitted stream."""

    @property
    def stream(self) -> StreamId:
        """The stream's id."""

    @property
    def resume_token(self) -> str:
        """The secret that `hello` carries to the client."""

    def begin(self, options: StreamOptions) -> None:
        """Create the stream. A failure is reported by `on_failure`."""

    def append(self, audio: Audio) -> bool:
        """Append the stream's next audio; return False if the caller has to stop reading until `on_room`."""

    def finalize(self) -> bool:
        """Request a result of all audio so far; return False as `append` does."""

    def replace_phrases(self, change: Phrases) -> bool:
        """Replace the stream's phrases from the end of its audio so far on; return False as `append` does."""

    def confirm(self) -> None:
        """Note that the client has received its new resume token: the previous one becomes invalid."""

    def abandon(self, *, keep: bool, code: str = CLIENT_GONE) -> None:
        """End a stream that no client listens to any more: now, or after the grace period if `keep`.

        Where no stream has begun, the admission is returned. `code`: the reason, for the log.
        """

    def release(self, *, code: str = FINAL) -> None:
        """Return the slot: the end of the stream has been sent. `code`: why it ended, for the log."""


@dataclass(frozen=True, slots=True)
class Resumption:
    """A stream taken over from another connection.

    next_sample: first sample that is not in Redis yet.   acked_samples: samples decoded so far.
    finished: whether all of its audio had been sent already.
    options, sample_rate (Hz): the values with which it was begun.
    num_marks: entries without samples, such as `phrases`, that are in Redis behind the audio.
    """

    link: StreamLink
    next_sample: int
    acked_samples: int
    finished: bool
    options: StreamOptions
    sample_rate: int
    num_marks: int = 0


class Backplane(Protocol):
    """The service behind a connection."""

    @property
    def languages(self) -> Languages:
        """The languages of the served model, as far as they are known."""

    async def admit(self, listener: StreamListener, caller: Caller = NOBODY) -> StreamLink:
        """Ask the cluster for a stream.

        Raises NoFreeStream, NoWorker or RedisUnavailable, within a bounded time.
        """

    async def readmit(
        self, listener: StreamListener, stream: StreamId, resume_token: str, caller: Caller = NOBODY
    ) -> StreamLink:
        """Ask the cluster again for the slot of a stream, which was returned before the stream began.

        Raises NoFreeStream, NoWorker or RedisUnavailable, within a bounded time.
        """

    async def resume(self, listener: StreamListener, request: Resume, caller: Caller = NOBODY) -> Resumption:
        """Take a stream over from a connection that was lost.

        The results after `last_seq` come through the listener once this has returned.
        Raises Unavailable (`resume_refused`, `redis_unavailable`, `internal`), within a bounded time.
        """
