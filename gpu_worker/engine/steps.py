"""The seam between the engine and a model: rows of numbers go in, rows of symbols come out later.

The engine keeps streams, slots, audio, pages and text; whoever implements `Steps` keeps the model and what
it remembers of each slot.  Implementations: `eager` (the plain model, for CPU), `cuda_graphs` (captured
graphs), `nemo` (NeMo's modules), `null` (no model).  Another family of models is another implementation.

Shape suffixes: F fields of a row, B rows of the step, M pages of a ring, N kept frames, K most symbols of a
row, W windows of the speech detector, S slots, C samples of a ring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from gpu_worker.engine.interface import EngineStats
from gpu_worker.engine.phrases.tree_memory import TreeMemory
from gpu_worker.engine.slots.clock import ChunkClock
from gpu_worker.engine.slots.samples import PCM16_SCALE, Samples
from gpu_worker.turn.outcome import WINDOW_SAMPLES

# Samples of a stream whose end is not known; more than a row's numbers reach, and sound in int32.
UNKNOWN_END: Final = 1 << 30
# A stream's end may leave samples that complete no further frame: less than two mel hops.
SPARE_HOPS: Final = 2


class Field(IntEnum):
    """Rows of the integers that describe a step, int32 [F, B].

    START is the first encoder frame, FRAMES the valid ones (0 for none), TOTAL the stream's samples or
    UNKNOWN_END, HEARD how many of the row's samples the speech detector takes (0 for none), FLOAT 1 where
    the slot's ring holds float32 and 0 where it holds pcm16.  Of an old stream START and TOTAL count from a
    later origin (`engine.positions`).
    """

    SLOT = 0
    START = 1
    FRAMES = 2
    TOTAL = 3
    HEARD = 4
    FLOAT = 5


@dataclass(frozen=True, slots=True)
class RingMemory:
    """Host memory of every slot's samples: sample n of a stream stands at n modulo C.

    A slot has room for C samples of float32 and uses half of it for pcm16.  C is a multiple of a frame's
    samples and holds at least two steps' samples of a row (one where steps do not overlap).
    """

    float32_SC: NDArray[np.float32]

    @classmethod
    def allocate(cls, num_slots: int, num_samples: int) -> RingMemory:
        """Memory of this process, untouched until it is written; with a spare slot."""
        return cls(np.zeros((num_slots + 1, num_samples), dtype=np.float32))

    @property
    def num_samples(self) -> int:
        """C."""
        return int(self.float32_SC.shape[1])

    @property
    def pcm16(self) -> NDArray[np.int16]:
        """The rings of slots that hold pcm16, [S, C]."""
        return self.float32_SC.view(np.int16)[:, : self.num_samples]

    def of(self, slot: int, *, is_float: bool) -> Samples:
        """Return the ring of a slot."""
        row: NDArray[np.float32] = self.float32_SC[slot]
        return row if is_float else row.view(np.int16)[: self.num_samples]

    def gather(
        self, slots_B: NDArray[np.int32], is_float_B: NDArray[np.bool_], samples_BN: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return the samples of these numbers of each row's stream, as float32 at full scale 1.0."""
        at_BN, slots_B = samples_BN % self.num_samples, slots_B[:, None]
        audio = np.multiply(self.pcm16[slots_B, at_BN], PCM16_SCALE, dtype=np.float32)
        if is_float_B.any():
            audio[is_float_B] = self.float32_SC[slots_B[is_float_B], at_BN[is_float_B]]
        return audio


@dataclass(frozen=True, slots=True)
class PageShape:
    """The paged key/value cache.

    num_pages: pages that streams can take, at least one; a table names `num_pages` where it has none.
    page_frames: encoder frames of a page.
    ring_pages: most pages of one stream, which then writes over its own oldest frames.
    left_frames: frames back from its next one that a stream can still see.
    """

    num_pages: int
    page_frames: int
    ring_pages: int
    left_frames: int

    @property
    def ring_frames(self) -> int:
        """Frames that the pages of one stream hold."""
        return self.page_frames * self.ring_pages


# Of a model that keeps all it remembers in its slots.
NO_PAGES: Final = PageShape(num_pages=1, page_frames=1, ring_pages=0, left_frames=0)


@dataclass(frozen=True, slots=True)
class StepShape:
    """What an engine must know of its steps.

    clock: samples, frames and chunks of the model.
    num_slots: streams that can be open.
    max_rows: rows of a step.
    max_chunks: chunks of a row; all rows of a step but those that end have equally many.
    frame_symbols: most symbols of a frame.
    pages: of the key/value cache.
    overlaps: a device works beside the host, so that a step is launched before the last one is read.
    hears: whether windows of the speech detector can be had.
    fingerprint: names the weights and the layout of a slot's state, for snapshots.
    reach_frames: whole chunks of audio that bring back all of a slot's state but what `Steps.export` returns
        without kept frames; 0 where snapshots hold the whole state.
    recording_rows: rows of a step for recordings, while live streams are open.
    """

    clock: ChunkClock
    num_slots: int
    max_rows: int
    max_chunks: int
    frame_symbols: int
    pages: PageShape
    overlaps: bool
    hears: bool
    fingerprint: str
    reach_frames: int = 0
    recording_rows: int = 1


@dataclass(frozen=True, slots=True)
class StepFindings:
    """What a step found, on the host.

    num_symbols_B; of each row the symbols, their frames (from the row's first on) and confidences
    [B, K], valid up to its number; speech probabilities [B, W] of the windows that a row's heard samples
    complete.  The arrays may be views that the launch after the next one overwrites.
    """

    num_symbols_B: NDArray[np.int32]
    symbols_BK: NDArray[np.int32]
    frames_BK: NDArray[np.int32]
    confidences_BK: NDArray[np.float32]
    speech_BW: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Flight:
    """A launched step; `token` is the implementation's own."""

    num_rows: int
    token: object


@dataclass(frozen=True, slots=True)
class KeptFrames:
    """Page and offset of the frames whose keys and values later chunks of a stream can still see."""

    pages_N: NDArray[np.int64]
    offsets_N: NDArray[np.int64]


AllocateRings = Callable[[int, int], RingMemory]
"""Makes the rings of so many slots, with so many samples each: `RingMemory.allocate`, or shared memory."""

Export = Callable[[], Mapping[str, memoryview]]
"""A state on its way to the host: the call waits for it, in any thread."""


class Steps(Protocol):
    """Runs steps and keeps the state of slots.  One thread calls it."""

    shape: StepShape
    stats: EngineStats
    """Where calls and seconds of the stages are counted; the rest of it is the engine's."""
    rings: RingMemory
    """Where the engine writes the samples that rows name."""

    @property
    def trees(self) -> TreeMemory:
        """Boosting trees of phrases, and which slots are decoded with them."""
        ...

    def reset(self, slots: Sequence[int], prompts: Sequence[int]) -> None:
        """Give slots to new streams with these language prompts, behind the steps launched before."""
        ...

    def launch(self, rows_FB: NDArray[np.int32], table_BM: NDArray[np.int32]) -> Flight:
        """Start a step.  The samples that its rows name stand in the ring until it was waited for.

        Args:
            rows_FB: see `Field`; no slot twice.
            table_BM: the pages of each row's stream.
        """
        ...

    def is_over(self, flight: Flight) -> bool:
        """Whether `wait` would return at once."""
        ...

    def wait(self, flight: Flight) -> StepFindings:
        """Wait for the oldest flight and count its stages' time."""
        ...

    def export(self, slot: int, kept: KeptFrames | None) -> Export:
        """Copy a slot's state to the host, by name: as it is behind the steps launched before.

        kept: None for what no audio brings back (see `StepShape.reach_frames`), else the whole state.
        """
        ...

    def load(self, slot: int, kept: KeptFrames | None, state: Mapping[str, memoryview]) -> None:
        """Put an exported state into a slot, behind the steps launched before.

        kept: as it was for `export`, in the pages that the slot has now.  Raises KeyError or ValueError when
        the state does not fit.
        """
        ...


def max_windows(num_columns: int) -> int:
    """Most speech windows that a row of so many samples can complete."""
    return -(-num_columns // WINDOW_SAMPLES)


__all__ = [
    "NO_PAGES",
    "SPARE_HOPS",
    "UNKNOWN_END",
    "WINDOW_SAMPLES",
    "AllocateRings",
    "Export",
    "Field",
    "Flight",
    "KeptFrames",
    "PageShape",
    "RingMemory",
    "StepFindings",
    "StepShape",
    "Steps",
    "max_windows",
]
