"""What other threads ask of the engine thread, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from common.errors import ClientFault, EngineError, ErrorCode, StreamError, Unavailable
from common.hot_value import hot_value
from common.phrases import Phrase
from gpu_worker.engine.interface import PhrasesFull, StreamOutput, UnsupportedOption
from gpu_worker.pipeline.flow import StreamFlow

if TYPE_CHECKING:
    from gpu_worker.engine.slots.samples import Samples


@dataclass(frozen=True, slots=True)
class Open:
    """Take a stream in, with the snapshot to go on from."""

    flow: StreamFlow
    snapshot: bytes | None


@hot_value
class Feed:
    """Samples at 16 kHz of all streams of one read, those of one stream in order."""

    parts: Sequence[tuple[StreamFlow, Samples]]


@dataclass(frozen=True, slots=True)
class Finalize:
    """Give a result of all audio so far; `entry_id` asks for it."""

    flow: StreamFlow
    entry_id: bytes


@dataclass(frozen=True, slots=True)
class ReplacePhrases:
    """Have other phrases from `sample` (16 kHz, of the whole stream) on."""

    flow: StreamFlow
    phrases: tuple[Phrase, ...]
    sample: int


@dataclass(frozen=True, slots=True)
class Finish:
    """No more audio comes."""

    flow: StreamFlow


@dataclass(frozen=True, slots=True)
class Fail:
    """End a stream with an error to its client."""

    flow: StreamFlow
    error: StreamError


@dataclass(frozen=True, slots=True)
class Drop:
    """Forget a stream that is no longer ours, without a word to its client."""

    flow: StreamFlow


@dataclass(frozen=True, slots=True)
class HandOver:
    """Take a snapshot of every stream and forget it: another worker goes on from there."""


Command = Open | Feed | Finalize | ReplacePhrases | Finish | Fail | Drop | HandOver


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
    """The engine's state of a stream behind `samples_decoded`; `release` when the stream is handed over.

    first_sample: where a new owner begins to read.  Both count 16 kHz samples of the whole stream.
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
    """Everything that the engine had was handed over."""


Event = Opened | Failed | SnapshotTaken | Decoded | Dropped | HandedOver


class EventSink(Protocol):
    """Takes what the engine thread says, in order; may make it wait when too much is queued."""

    def put(self, event: Event) -> None:
        """Take one event."""

    def takes_snapshot(self) -> bool:
        """Whether a snapshot that were taken now would be written soon."""


def worker_failed() -> Unavailable:
    """Return the error for a client whose stream could not be decoded; the log says why."""
    return Unavailable(ErrorCode.WORKER_FAILED, "The worker could not decode the stream.")


def failure_of(error: EngineError) -> StreamError:
    """Return the error for a client whose stream the engine gave up."""
    if isinstance(error, UnsupportedOption):
        return ClientFault(ErrorCode.BAD_OPTION, str(error))
    if isinstance(error, PhrasesFull):
        return Unavailable(ErrorCode.PHRASES_FULL, str(error))
    return worker_failed()
