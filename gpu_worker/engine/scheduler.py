"""Who decodes how much in the next step.

A stream is ready when a whole chunk of it waits, or its end.  Ready streams stand in one line: a step
takes them from the front, and who still is ready after it goes to the back, so that no stream waits for
more than one turn of every other.  All rows of a step decode the same number of chunks, the largest
step of the ladder that every row can fill (the end of a stream fills any): streams that are behind
together catch up several chunks at a time, and one that is behind alone does whenever no other is ready.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from common.entries import StreamId


@dataclass(frozen=True, slots=True)
class Demand:
    """What a ready stream could decode: whole chunks, frames after them, and whether it ends there."""

    chunks: int
    remainder_frames: int
    ends: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A stream's part of a step: whole chunks, frames of its remainder, and whether the stream ends."""

    stream: StreamId
    chunks: int
    remainder_frames: int
    ends: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """One step.  Every row has room for `chunks` chunks."""

    chunks: int
    rows: tuple[Row, ...]


class Scheduler:
    """The line of ready streams.

    Args:
        max_rows: streams of a step.
        max_chunks: chunks of a row; the ladder is 1, 2, 4, ... up to it.
        chunk_frames: encoder frames of a chunk.
    """

    def __init__(self, max_rows: int, max_chunks: int, chunk_frames: int) -> None:
        if max_rows < 1 or max_chunks < 1:
            raise ValueError("a step has at least one row of one chunk")
        self.max_rows = max_rows
        self.chunk_frames = chunk_frames
        self.ladder = chunk_ladder(max_chunks)
        self._line: dict[StreamId, None] = {}

    def __len__(self) -> int:
        return len(self._line)

    def __contains__(self, stream: StreamId) -> bool:
        return stream in self._line

    def add(self, stream: StreamId) -> None:
        """Put a stream at the back of the line, unless it stands in it."""
        self._line.setdefault(stream)

    def remove(self, stream: StreamId) -> None:
        """Take a stream out of the line, wherever it stands."""
        self._line.pop(stream, None)

    def schedule(self, demand_of: Callable[[StreamId], Demand]) -> Schedule:
        """Plan the next step from the front of the line.  Changes nothing."""
        chosen = [(stream, demand_of(stream)) for stream in islice(self._line, self.max_rows)]
        chunks = self._chunks(demand for _, demand in chosen)
        return Schedule(chunks, tuple(self._row(stream, demand, chunks) for stream, demand in chosen))

    def done(self, schedule: Schedule, still_ready: Callable[[StreamId], bool]) -> None:
        """After the step: its streams leave the front, and those that still are ready go to the back."""
        for row in schedule.rows:
            if row.stream in self._line:
                del self._line[row.stream]
                if still_ready(row.stream):
                    self._line[row.stream] = None

    def _chunks(self, demands: Iterable[Demand]) -> int:
        whole: list[Demand] = []
        ending: list[Demand] = []
        for demand in demands:
            (ending if demand.ends else whole).append(demand)
        if whole:
            limit = min(demand.chunks for demand in whole)
        else:
            limit = max((d.chunks + (d.remainder_frames > 0) for d in ending), default=1)
        return max(step for step in self.ladder if step <= max(1, limit))

    def _row(self, stream: StreamId, demand: Demand, chunks: int) -> Row:
        if demand.ends:
            frames = demand.chunks * self.chunk_frames + demand.remainder_frames
            if frames <= chunks * self.chunk_frames:
                return Row(stream, demand.chunks, demand.remainder_frames, ends=True)
        return Row(stream, min(chunks, demand.chunks), 0, ends=False)


def chunk_ladder(max_chunks: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to `max_chunks`."""
    return tuple(1 << power for power in range(max_chunks.bit_length()))
