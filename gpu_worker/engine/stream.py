"""Host-side state of one stream: samples that wait, frames done, transcript so far.

No tensor lives here: what the model remembers of a stream stands in the rows of its slot.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.clock import ChunkClock
from gpu_worker.engine.scheduler import Demand
from gpu_worker.engine.transcript import Transcript


class SampleQueue:
    """Samples in the order they were fed, copied once: into the batch."""

    def __init__(self) -> None:
        self._parts: deque[NDArray[np.float32]] = deque()
        self._used = 0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def append(self, samples: NDArray[np.float32]) -> None:
        """Queue samples; the queue keeps the array."""
        if samples.shape[0]:
            self._parts.append(samples)
            self._waiting += samples.shape[0]

    def take_into(self, target: NDArray[np.float32]) -> int:
        """Move samples to the front of `target`; returns how many, at most what waits."""
        filled, wanted = 0, target.shape[0]
        while filled < wanted and self._parts:
            part = self._parts[0]
            count = min(wanted - filled, part.shape[0] - self._used)
            target[filled : filled + count] = part[self._used : self._used + count]
            filled += count
            self._used += count
            if self._used == part.shape[0]:
                self._parts.popleft()
                self._used = 0
        self._waiting -= filled
        return filled


@dataclass(slots=True)
class Stream:
    """One open stream.  The engine's thread owns it.

    `order` counts openings: a higher one is newer.  `frames_done` are encoder frames decoded, whole chunks
    until the last.  `total_samples` is the stream's length once `finish` was called.
    """

    stream: StreamId
    slot: int
    order: int
    options: StreamOptions
    clock: ChunkClock
    transcript: Transcript
    queue: SampleQueue = field(default_factory=SampleQueue)
    samples_taken: int = 0
    frames_done: int = 0
    total_samples: int | None = None
    ended: bool = False

    @property
    def samples_fed(self) -> int:
        """Samples fed over the stream's whole life."""
        return self.samples_taken + len(self.queue)

    @property
    def chunks_done(self) -> int:
        """Whole chunks decoded."""
        return self.frames_done // self.clock.chunk_frames

    @property
    def chunks_waiting(self) -> int:
        """Whole chunks that could be decoded now."""
        return 0 if self.ended else self.clock.whole_chunks(self.samples_fed) - self.chunks_done

    @property
    def samples_decoded(self) -> int:
        """Samples that the frames decoded so far cover; all of them once the stream has ended."""
        if self.ended and self.total_samples is not None:
            return self.total_samples
        return self.clock.samples_of_frames(self.frames_done)

    def demand(self) -> Demand:
        """What the stream could decode now."""
        if self.total_samples is None:
            return Demand(self.chunks_waiting, 0, ends=False)
        chunks = self.clock.whole_chunks(self.total_samples)
        rest = self.clock.total_frames(self.total_samples) - chunks * self.clock.chunk_frames
        return Demand(chunks - self.chunks_done, rest, ends=True)

    @property
    def is_ready(self) -> bool:
        """A whole chunk waits, or the end."""
        return not self.ended and (self.total_samples is not None or self.chunks_waiting > 0)
