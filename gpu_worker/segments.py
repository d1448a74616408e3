"""The parts of streams between `finalize` requests: each part is a stream of its own to the engine.

`finalize` requests the result that the end of a stream would have. So the engine ends its part there, and
begins a new part with the audio after it. That audio waits here until the engine has returned the last output
of the part before. benchmarks/finalize.py compares this with the alternatives, and measures its cost in
words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from common.entries import StreamId
from common.phrases import Phrase
from common.streams.assignments import BEGINNING, Base
from gpu_worker.cold_start import placed
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.pipeline.engine_events import Finalize, Finish, ReplacePhrases
from gpu_worker.pipeline.flow import StreamFlow

if TYPE_CHECKING:
    from gpu_worker.engine.slots.samples import Samples

Waiting = list["Samples | Finalize | ReplacePhrases | Finish"]


@dataclass(frozen=True, slots=True)
class _Segment:
    """A part that begins within a stream, and the text before it."""

    base: Base
    text_before: str


@dataclass(slots=True)
class _Closing:
    """A part that the engine was told to end: the request, its phrases, and commands for the next part."""

    entry_id: bytes
    phrases: tuple[Phrase, ...]
    waiting: Waiting = field(default_factory=list)


class Segments:
    """The parts of all streams. For the engine's thread."""

    def __init__(self) -> None:
        self._segments: dict[StreamId, _Segment] = {}
        self._closing: dict[StreamId, _Closing] = {}
        self._utterances: dict[StreamId, int] = {}  # finals so far, of streams that have any

    def open(self, flow: StreamFlow) -> None:
        """Note that the engine has opened a stream, from `flow.base` on."""
        if flow.base is not BEGINNING:
            self._segments[flow.stream] = _Segment(flow.base, flow.text[: flow.base.text_chars])
        told = flow.owned.record.checkpoint.utterances
        if told:
            self._utterances[flow.stream] = told

    def drop(self, stream: StreamId) -> None:
        """Note that the engine has dropped a stream."""
        self._segments.pop(stream, None)
        self._closing.pop(stream, None)
        self._utterances.pop(stream, None)

    def first_sample(self, stream: StreamId) -> int:
        """Return the beginning of the engine's part of a stream, in samples of 16 kHz."""
        segment = self._segments.get(stream)
        return segment.base.samples if segment is not None else 0

    def is_finalized(self, stream: StreamId) -> bool:
        """Return whether the stream has a part behind a `finalize`, perhaps without any audio before it."""
        return stream in self._segments

    def waiting(self, stream: StreamId) -> Waiting | None:
        """Return the queue for commands to a stream whose part is being closed; None for any other stream."""
        closing = self._closing.get(stream)
        return closing.waiting if closing is not None else None

    def close_part(self, stream: StreamId, entry_id: bytes, phrases: tuple[Phrase, ...] = ()) -> None:
        """Note that the engine was told to end its part of a stream, because of an audio entry.

        phrases: the stream's newest phrases.
        """
        self._closing[stream] = _Closing(entry_id, phrases)

    def next_part(self, end: StreamOutput) -> tuple[tuple[Phrase, ...], Waiting]:
        """Begin the next part after the end of one; return its phrases, and the commands that waited."""
        stream = end.stream
        closing = self._closing.pop(stream)
        base = Base(
            end.samples_decoded, len(end.text), self._utterances.get(stream, 0), finalized=closing.entry_id
        )
        self._segments[stream] = _Segment(base, end.text)
        return closing.phrases, closing.waiting

    def told(self, outputs: Sequence[StreamOutput]) -> Sequence[StreamOutput]:
        """Convert outputs about parts into outputs about whole streams: the end of a part is no end."""
        if self._segments or self._closing:
            outputs = [self._told(output) for output in outputs]
        for output in outputs:
            if output.utterances:
                self._utterances[output.stream] = output.utterances[-1].number
        return outputs

    def _told(self, output: StreamOutput) -> StreamOutput:
        stream = output.stream
        segment = self._segments.get(stream)
        if segment is not None:
            output = placed(output, segment.base, segment.text_before)
        if output.is_final and stream in self._closing:
            output = replace(output, is_final=False, from_finalize=True)
        return output
