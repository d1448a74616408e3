# ruff: noqa: N818  (OutOfPages says more than OutOfPagesError)
"""The interface of an engine to the worker: streams of 16 kHz samples in, results out.

All calls of an engine come from one thread. The results of a stream are a pure function of its samples and
options: they do not depend on the sizes in which samples are fed, on the other streams of the batch, or on
the number of chunks in a step. Each whole chunk of audio may have results, and so may the end. A chunk
without a new result has an output only if a second of audio ends in it, as an acknowledgement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Protocol

from common.entries import StreamId
from common.errors import EngineError, EngineFull, ServiceError
from common.hot_value import hot_value
from common.messages import LastState, TurnDetection, Utterance, Word
from common.options import StreamOptions
from common.phrases import Phrase

if TYPE_CHECKING:
    from gpu_worker.engine.slots.samples import Samples

__all__ = [
    "ENGINE_SAMPLE_RATE",
    "DeviceLost",
    "Engine",
    "EngineError",
    "EngineFull",
    "EngineStats",
    "OutOfPages",
    "PhrasesFull",
    "SnapshotMismatch",
    "StageStats",
    "StreamFinished",
    "StreamOutput",
    "StreamSnapshot",
    "UnknownStream",
    "UnsupportedOption",
    "Utterance",
]

ENGINE_SAMPLE_RATE = 16_000


class UnknownStream(EngineError):
    """The stream is not open (never was, was closed, or has had its final output)."""


class StreamFinished(EngineError):
    """Samples were fed after `finish`."""


class SnapshotMismatch(EngineError):
    """A snapshot of another model, context or layout, from which this engine cannot go on."""


class UnsupportedOption(EngineError):
    """A stream's options need a feature that the model lacks; the message is a sentence for the client."""


class OutOfPages(EngineError):
    """The paged key/value cache has no page left for a stream that needs one to go on."""


class PhrasesFull(EngineError):
    """There is no memory left for the phrases of another stream."""


class DeviceLost(ServiceError):
    """The device is gone for all streams. Not an `EngineError`: it is no fault of one stream."""


@hot_value
class StreamOutput:
    """The output of one chunk of one stream, or of the part of it up to a start or an end of an utterance.

    `samples_decoded` counts 16 kHz samples covered so far, over the whole stream.  `token_ids` are
    the tokens that are new, `confidence_scores` and `token_frames` (absolute 80 ms encoder
    frames) stand beside them; `<EOU>` and `<EOB>` are among them, and never in the text.  `words` are
    those that became complete with this chunk, each once over the stream's life; None unless the stream's
    options ask for them.  `text` is the whole transcript so far, across utterances.  `changed`
    is False when nothing but `samples_decoded` moved: such an output is only an acknowledgement.
    `is_turn_event` marks an output that must not be merged away (a start or an end of an utterance).
    `failed` names the error that ended the stream in the engine; such an output is the stream's last
    and carries nothing else that is new.  `utterances` are the finals of utterances that this output
    carries, only with the option `auto_finalize`.  `from_finalize` is never set by an engine, but by
    `gpu_worker.segments`: the output answers a client's `finalize`.
    """

    stream: StreamId
    samples_decoded: int
    token_ids: tuple[int, ...]
    confidence_scores: tuple[float, ...]
    token_frames: tuple[int, ...]
    text: str
    last_state: LastState | None
    turn_detection: TurnDetection
    is_final: bool
    is_turn_event: bool
    words: tuple[Word, ...] | None
    changed: bool
    failed: EngineError | None = None
    utterances: tuple[Utterance, ...] = ()
    from_finalize: bool = False


@dataclass(frozen=True, slots=True)
class StreamSnapshot:
    """The state of a stream between two steps, for `Engine.open`, in this or another process.

    samples_decoded: samples that the stream's outputs cover by then.
    first_sample: where its audio is fed from to an engine that opens it; what lies before it is not needed.
    to_bytes: serializes it; waits for the device, in any thread.  It is called once.
    """

    samples_decoded: int
    first_sample: int
    to_bytes: Callable[[], bytes]


@dataclass(slots=True)
class StageStats:
    """Cumulative counters of one stage: calls, units of work (see `EngineStats`), busy seconds."""

    calls: int = 0
    units: int = 0
    busy_s: float = 0.0


@dataclass(slots=True)
class EngineStats:
    """Counters since start and gauges of now.

    Units: turn_detection counts speech-detector windows of 32 ms, pre_encode counts chunks (the end of a
    stream is one), encode and decode count 80 ms encoder frames.  `late_chunks` are of live streams, and were
    planned when the next chunk of their stream was whole already.  Gauges: `ready_streams` have a whole chunk
    or their end waiting, `waiting_chunks` are whole and not planned, `in_flight` were in the step that runs
    or ran last, `open_streams` hold a slot.  `turn_detection_depth` are chunks that wait for a verdict of
    turn detection, over `turn_detection_streams` streams.
    """

    turn_detection: StageStats = field(default_factory=StageStats)
    pre_encode: StageStats = field(default_factory=StageStats)
    encode: StageStats = field(default_factory=StageStats)
    decode: StageStats = field(default_factory=StageStats)
    tokens: int = 0
    steps: int = 0
    open_streams: int = 0
    ready_streams: int = 0
    waiting_chunks: int = 0
    late_chunks: int = 0
    in_flight: int = 0
    turn_detection_depth: int = 0
    turn_detection_streams: int = 0

    def copied(self) -> EngineStats:
        """Return the numbers of now."""
        return deepcopy(self)

    def set_to(self, other: EngineStats) -> None:
        """Have another's numbers; objects of this one stay where they are, since others hold them."""
        for mine in fields(self):
            value = getattr(other, mine.name)
            if isinstance(value, StageStats):
                stage = getattr(self, mine.name)
                stage.calls, stage.units, stage.busy_s = value.calls, value.units, value.busy_s
            else:
                setattr(self, mine.name, value)


class Engine(Protocol):
    """A batched, stateful speech recognizer.  Not thread-safe: one thread owns it."""

    @property
    def capacity(self) -> int:
        """Streams that can be open at once."""
        ...

    @property
    def stats(self) -> EngineStats:
        """Live counters and gauges; the same object at every call."""
        ...

    def open(self, stream: StreamId, options: StreamOptions, snapshot: bytes | None = None) -> None:
        """Give the stream a slot; with a snapshot, go on exactly where it was taken.

        The samples that are fed then are those from the snapshot's `first_sample` on.  Outputs of those that
        its `samples_decoded` covers are acknowledgements.
        Raises EngineFull, SnapshotMismatch, OutOfPages (with a snapshot only), and ValueError for a stream
        that is open already.
        """
        ...

    def feed(self, stream: StreamId, samples: Samples) -> None:
        """Queue mono samples (1-D at 16 kHz; float32 at full scale 1.0, or pcm16).  Computes nothing.

        Raises UnknownStream, StreamFinished, and ValueError for another type or samples not finite.
        """
        ...

    def replace_phrases(self, stream: StreamId, phrases: tuple[Phrase, ...], sample: int) -> None:
        """Replace the phrases from the first chunk on that begins at `sample` (16 kHz) or later.

        A decoded chunk is not decoded again. Phrases that the model cannot write, or for which there is no
        memory, end the stream there, with an output that has `failed`.
        """
        ...

    def phrases(self, stream: StreamId) -> tuple[Phrase, ...]:
        """Return the newest phrases that were set for the stream."""
        ...

    def finish(self, stream: StreamId) -> None:
        """Note that no more samples come: a later `step` returns the output with `is_final`."""
        ...

    def close(self, stream: StreamId) -> None:
        """Drop the stream now, its queued samples and state with it.  Raises UnknownStream."""
        ...

    def snapshot(self, stream: StreamId, *, whole: bool = False) -> StreamSnapshot:
        """Return the state with which `open` can go on with the stream, in this or another process.

        whole: whether to include the state that can be computed again from audio.

        Samples that were fed and not decoded are not part of it. Take it before `finish` is called, or right
        after `step`. If the stream is in a running step, the call waits for the step. Raises EngineError for
        a stream that has ended or has not reached the snapshot with which it was opened.
        """
        ...

    def is_under_way(self, stream: StreamId) -> bool:
        """Return whether a step with the stream runs, or the stream has not reached its opening snapshot.

        False for a stream that is not open: a step may have ended it of which the caller has no outputs yet.
        """
        ...

    def samples_decoded(self, stream: StreamId) -> int:
        """Return how many 16 kHz samples the stream's outputs, or its snapshot, cover so far."""
        ...

    def has_work(self) -> bool:
        """Return whether `step` would decode something."""
        ...

    def is_stepping(self) -> bool:
        """Return whether a launched step is not read yet: the thread still waits for the device."""
        ...

    def wait_s(self) -> float | None:
        """Return the longest time in seconds for which a thread without work may sleep before `has_work`.

        None: only a call of this engine makes work. A number: an output waits for a verdict of turn
        detection, and is returned without it after so many seconds.
        """
        ...

    def step(self) -> Sequence[StreamOutput]:
        """Run one step: schedule, launch, read.

        Returns the outputs of every chunk decoded, those of one stream in order.  An output with
        `is_final` or `failed` has freed the stream's slot.
        """
        ...

    def check_integrity(self) -> None:
        """Raise AssertionError when slots, pages or queues do not add up."""
        ...
