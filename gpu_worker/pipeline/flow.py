"""The state of one stream that a worker's threads share, and the table of the streams that the worker owns.

A stream's audio passes through three threads: the intake reads and converts it, the engine thread decodes it,
and the outlet writes its results. Each thread keeps its own state; each attribute here is written by one
thread and read by others.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Final

from common.entries import IngressId, StreamId
from common.streams.claims import OwnedStream
from common.tracing.tracer import NO_SPAN, NO_TRACER, Span, Tracer
from gpu_worker.engine.interface import ENGINE_SAMPLE_RATE

# Most audio of one stream in the engine that is not decoded; beyond it the stream is read no further: audio
# that comes faster than real time waits in Redis, not in the worker's memory.
_MAX_BACKLOG_MS: Final = 4_000


class Undecoded:
    """An audio entry on its way through the engine: its id, and its end at the client's rate.

    finalizes: whether it is done with its own result, and not with its last sample.
    """

    __slots__ = ("end_sample", "entry_id", "finalizes")

    def __init__(self, entry_id: bytes, end_sample: int, *, finalizes: bool = False) -> None:
        self.entry_id: Final = entry_id
        self.end_sample: Final = end_sample
        self.finalizes: Final = finalizes


class StreamFlow:
    """One owned stream as its threads see it.

    Written by the intake: `undecoded` (appended), `fed_samples` (engine's rate), `ended` (no audio follows),
    `ingress` (changes when another ingress attaches; the sweeper writes it, too), `held` (set when the engine
    has enough of this stream for now). Written by the outlet: `undecoded` (popped), `decoded_samples`,
    `decoded_entry` (last entry that is decoded whole), `held` (cleared). `lost` is set by
    `Owner.look_at_lost`, when another worker owns the stream, or it is gone. `base` and `cold` are set by the
    engine thread before it emits `Opened`: the base at which its engine began, and whether that is the
    checkpoint, without a snapshot.

    text: the kept text of the stream; it covers the stream at least up to the checkpoint.
    """

    __slots__ = (
        "base",
        "cold",
        "decoded_entry",
        "decoded_samples",
        "ended",
        "fed_samples",
        "held",
        "ingress",
        "lost",
        "owned",
        "stream",
        "text",
        "undecoded",
    )

    def __init__(self, owned: OwnedStream, text: str = "") -> None:
        samples = owned.record.checkpoint.first_sample
        self.text: Final = text
        self.base = owned.record.checkpoint.base
        self.cold = False
        self.owned: Final = owned
        self.stream: Final[StreamId] = owned.stream
        self.undecoded: Final[deque[Undecoded]] = deque()
        self.fed_samples = samples
        self.decoded_samples = samples
        self.decoded_entry: bytes | None = None
        self.ingress: IngressId = owned.record.ingress
        self.ended = False
        self.held = False
        self.lost = False

    @property
    def backlog_samples(self) -> int:
        """Number of samples in the engine that are not decoded yet."""
        return self.fed_samples - self.decoded_samples


class StreamTable:
    """The streams that a worker owns, and the slots that it has for them. For any thread.

    capacity: number of slots. chunk_ms: audio of one model call. max_backlog_samples: undecoded audio of one
    stream at which it is read no further; always more than a chunk, or a stream would wait for ever.
    tracer: makes a span of each ownership, from its begin here to its end.   worker: id of this worker.
    """

    def __init__(
        self, capacity: int, chunk_ms: int = 0, tracer: Tracer = NO_TRACER, worker: str = ""
    ) -> None:
        self._tracer = tracer
        self._worker = worker
        self._spans: dict[StreamId, Span] = {}
        self.capacity: Final = capacity
        self.max_backlog_samples: Final = max(_MAX_BACKLOG_MS, 2 * chunk_ms) * ENGINE_SAMPLE_RATE // 1000
        self._flows: dict[StreamId, StreamFlow] = {}
        self._reserved = 0
        self._changed = threading.Condition()

    def reserve(self, wanted: int) -> int:
        """Reserve up to `wanted` free slots for streams about to be claimed; return how many."""
        with self._changed:
            granted = max(0, min(wanted, self.capacity - len(self._flows) - self._reserved))
            self._reserved += granted
            return granted

    @property
    def num_free(self) -> int:
        """Number of slots that are neither taken nor reserved."""
        return self.capacity - len(self._flows) - self._reserved

    def unreserve(self, slots: int) -> None:
        """Release reserved slots."""
        with self._changed:
            self._reserved -= slots
            self._changed.notify_all()

    def add(self, flow: StreamFlow) -> None:
        """Put a claimed stream into one of the reserved slots; it takes the place of an earlier ownership."""
        with self._changed:
            self._reserved -= 1
            self._flows[flow.stream] = flow
            before = self._spans.pop(flow.stream, NO_SPAN)
            trace = flow.owned.record.trace
            if trace:
                self._spans[flow.stream] = self._tracer.ownership(
                    trace, stream_id=flow.stream, epoch=flow.owned.epoch, worker_id=self._worker
                )
        before.end(lost=1)

    def remove(self, flow: StreamFlow) -> None:
        """Free the slot of a stream. Harmless if it is free already."""
        with self._changed:
            if self._flows.get(flow.stream) is flow:
                del self._flows[flow.stream]
                span = self._spans.pop(flow.stream, NO_SPAN)
                self._changed.notify_all()
            else:
                return
        span.end(lost=int(flow.lost), decoded_samples=flow.decoded_samples)

    def end_spans(self) -> None:
        """End the spans of streams that are handed over."""
        with self._changed:
            spans, self._spans = self._spans, {}
        for span in spans.values():
            span.end(handed_over=1)

    def get(self, stream: StreamId) -> StreamFlow | None:
        """Return the flow of an owned stream; None for any other."""
        return self._flows.get(stream)

    def flows(self) -> list[StreamFlow]:
        """Return all owned streams."""
        with self._changed:
            return list(self._flows.values())

    def __len__(self) -> int:
        return len(self._flows)

    def wait_for_slot(self, timeout_s: float) -> bool:
        """Wait until a slot is free; return False after the time-out."""
        with self._changed:
            return self._changed.wait_for(
                lambda: len(self._flows) + self._reserved < self.capacity, timeout_s
            )

    def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until no stream is owned or about to be; return False after the time-out."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._flows and not self._reserved, timeout_s)

    def ingresses(self, flows: Iterable[StreamFlow]) -> dict[IngressId, list[StreamFlow]]:
        """Return streams grouped by their ingress."""
        found: dict[IngressId, list[StreamFlow]] = {}
        for flow in flows:
            found.setdefault(flow.ingress, []).append(flow)
        return found
