"""Commands of other threads to the engine thread, and the events that it emits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from common.entries import StreamId
from common.errors import ClientFault, EngineError, ErrorCode, StreamError, Unavailable
from common.hot_value import hot_value
from common.phrases import Phrase
from gpu_worker.engine.interface import PhrasesFull, StreamOutput, UnsupportedOption
from gpu_worker.pipeline.flow import StreamFlow

if TYPE_CHECKING:
    from gpu_worker.engine.slots.samples import Samples


@dataclass(frozen=True, slots=True)
class Open:
    """Open a stream, with the snapshot from which to go on."""

    flow: StreamFlow
    snapshot: bytes | None


@hot_value
class Feed:
    """Samples at 16 kHz of all streams of one read, those of one stream in order."""

    parts: Sequence[tuple[StreamFlow, Samples]]


@dataclass(frozen=True, slots=True)
class Finalize:
    """Produce a result of all audio so far; the audio entry `entry_id` requests it."""

    flow: StreamFlow
    entry_id: bytes


@dataclass(frozen=True, slots=True)
class ReplacePhrases:
    """Replace the phrases from `sample` (16 kHz, counted in the whole stream) on."""

    flow: StreamFlow
    phrases: tuple[Phrase, ...]
    sample: int


@dataclass(frozen=True, slots=True)
class Finish:
    """End the audio of a stream."""

    flow: StreamFlow


@dataclass(frozen=True, slots=True)
class Fail:
    """End a stream with an error for its client."""

    flow: StreamFlow
    error: StreamError


@dataclass(frozen=True, slots=True)
class Drop:
    """Drop a stream that this worker no longer owns, without a message to its client."""

    flow: StreamFlow


@dataclass(frozen=True, slots=True)
class HandOver:
    """Take a snapshot of every stream and drop it: other workers go on from the snapshots."""


@dataclass(frozen=True, slots=True)
class MakeRoom:
    """Take snapshots earlier than they are due: Redis is at its limit of memory, and they free audio."""


Command = Open | Feed | Finalize | ReplacePhrases | Finish | Fail | Drop | HandOver | MakeRoom


@dataclass(frozen=True, slots=True)
class Opened:
    """The engine has the stream."""

    flow: StreamFlow


@dataclass(frozen=True, slots=True)
class Failed:
    """The stream ended with an error."""

    flow: StreamFlow
    error: StreamError


@dataclass(frozen=True, slots=True)
class SnapshotTaken:
    """The engine's state of a stream after `samples_decoded`; `release` if the stream is handed over.

    first_sample: where a new owner begins to read. Both count 16 kHz samples of the whole stream.
    to_bytes: serializes the state; may wait for the device.
    """

    flow: StreamFlow
    samples_decoded: int
    first_sample: int
    to_bytes: Callable[[], bytes]
    release: bool


@dataclass(frozen=True, slots=True)
class Decoded:
    """The outputs of one step."""

    outputs: Sequence[StreamOutput]


@dataclass(frozen=True, slots=True)
class Dropped:
    """The engine has dropped the stream: its slot is free."""

    flow: StreamFlow


@dataclass(frozen=True, slots=True)
class HandedOver:
    """All streams of the engine were handed over."""


Event = Opened | Failed | SnapshotTaken | Decoded | Dropped | HandedOver


class EventSink(Protocol):
    """Takes the events of the engine thread, in order; blocks it while too many are queued."""

    def put(self, event: Event) -> None:
        """Take one event."""

    def takes_snapshot(self, stream: StreamId | None = None) -> bool:
        """Return whether a snapshot of this stream, or else of some stream, would be written soon."""


def worker_failed() -> Unavailable:
    """Return the error for a client whose stream could not be decoded; the log has the cause."""
    return Unavailable(ErrorCode.WORKER_FAILED, "The worker could not decode the stream.")


def failure_of(error: EngineError) -> StreamError:
    """Return the error for a client whose stream the engine gave up."""
    if isinstance(error, UnsupportedOption):
        return ClientFault(ErrorCode.BAD_OPTION, str(error))
    if isinstance(error, PhrasesFull):
        return Unavailable(ErrorCode.PHRASES_FULL, str(error))
    return worker_failed()
