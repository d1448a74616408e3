"""The interface between the engine and a model: rows of numbers go in, rows of symbols come out later.

The engine keeps streams, slots, audio, pages and text; an implementation of `Steps` keeps the model and its
state of each slot. Implementations: `eager` (the plain model, for CPU), `cuda_graphs` (captured graphs),
`nemo` (NeMo's modules), `null` (no model). Another family of models is another implementation.

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

# Value for the samples of a stream whose end is unknown; more than any row's numbers, and valid in int32.
UNKNOWN_END: Final = 1 << 30
# A stream's end may leave samples that complete no further frame: less than two mel hops.
SPARE_HOPS: Final = 2


class Field(IntEnum):
    """Rows of the integers that describe a step, int32 [F, B].

    START is the first encoder frame, FRAMES the number of valid frames, TOTAL the stream's samples or
    UNKNOWN_END, HEARD how many of the row's samples the speech detector takes, FLOAT 1 where the slot's ring
    holds float32 and 0 where it holds pcm16. For an old stream START and TOTAL count from a later origin
    (`engine.positions`).
    """

    SLOT = 0
    START = 1
    FRAMES = 2
    TOTAL = 3
    HEARD = 4
    FLOAT = 5


@dataclass(frozen=True, slots=True)
class RingMemory:
    """Host memory of every slot's samples: sample n of a stream is at n modulo C.

    A slot has room for C samples of float32 and uses half of it for pcm16.  C is a multiple of a frame's
    samples and holds at least two steps' samples of a row (one where steps do not overlap).
    """

    float32_SC: NDArray[np.float32]

    @classmethod
    def allocate(cls, num_slots: int, num_samples: int) -> RingMemory:
        """Allocate memory of this process, untouched until it is written, with a spare slot."""
        return cls(np.zeros((num_slots + 1, num_samples), dtype=np.float32))

    @property
    def num_samples(self) -> int:
        """Samples of a ring: C."""
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
        """Return the samples with these numbers of each row's stream, as float32 at full scale 1.0."""
        at_BN, slots_B = samples_BN % self.num_samples, slots_B[:, None]
        audio = np.multiply(self.pcm16[slots_B, at_BN], PCM16_SCALE, dtype=np.float32)
        if is_float_B.any():
            audio[is_float_B] = self.float32_SC[slots_B[is_float_B], at_BN[is_float_B]]
        return audio


@dataclass(frozen=True, slots=True)
class PageShape:
    """The paged key/value cache.

    num_pages: pages that streams can take, at least one; `num_pages` in a table stands for no page.
    page_frames: encoder frames of a page.
    ring_pages: most pages of one stream, which then overwrites its own oldest frames.
    left_frames: left context of a stream's next frame, in frames.
    """

    num_pages: int
    page_frames: int
    ring_pages: int
    left_frames: int

    @property
    def ring_frames(self) -> int:
        """Frames that the pages of one stream hold."""
        return self.page_frames * self.ring_pages


# Pages of a model that keeps all of its state in its slots.
NO_PAGES: Final = PageShape(num_pages=1, page_frames=1, ring_pages=0, left_frames=0)


@dataclass(frozen=True, slots=True)
class StepShape:
    """The facts about steps that an engine needs.

    clock: samples, frames and chunks of the model.
    num_slots: number of streams that can be open.
    max_rows: most rows of a step.
    max_chunks: most chunks of a row; all rows of a step but ending ones have equally many.
    frame_symbols: most symbols of a frame.
    pages: shape of the key/value cache.
    overlaps: whether a device works beside the host, so that a step is launched before the last one is read.
    hears: whether the steps can run the speech detector.
    fingerprint: identifies the weights and the layout of a slot's state, for snapshots.
    reach_frames: encoder frames, whole chunks, whose audio restores all of a slot's state except the state
        that `Steps.export` returns without kept frames; 0 where snapshots hold the whole state.
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
    """The findings of a step, on the host.

    num_symbols_B: symbols of each row. The symbols, their frames (from the row's first on) and confidences
    are [B, K], valid up to that number. Speech probabilities are [B, W], for the windows that a row's HEARD
    samples complete. The arrays may be views that the launch after the next one overwrites.
    """

    num_symbols_B: NDArray[np.int32]
    symbols_BK: NDArray[np.int32]
    frames_BK: NDArray[np.int32]
    confidences_BK: NDArray[np.float32]
    speech_BW: NDArray[np.float32]

    def of(self, is_chosen_B: NDArray[np.bool_]) -> StepFindings:
        """Return the findings of some of the rows."""
        return StepFindings(
            self.num_symbols_B[is_chosen_B],
            self.symbols_BK[is_chosen_B],
            self.frames_BK[is_chosen_B],
            self.confidences_BK[is_chosen_B],
            self.speech_BW[is_chosen_B],
        )


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
"""Allocates the rings of so many slots, of so many samples each: `RingMemory.allocate`, or shared memory."""

Export = Callable[[], Mapping[str, memoryview]]
"""A state that is being copied to the host: the call waits for it and returns it, in any thread."""


class Steps(Protocol):
    """Runs steps and keeps the state of slots. One thread calls it."""

    shape: StepShape
    stats: EngineStats
    """Counters; the steps count calls and seconds of the stages, the engine the rest."""
    rings: RingMemory
    """The memory to which the engine writes the samples of rows."""

    @property
    def trees(self) -> TreeMemory:
        """The memory of boosting trees, with the slots that use each."""
        ...

    def reset(self, slots: Sequence[int], prompts: Sequence[int]) -> None:
        """Reset slots for new streams with these language prompts, after the steps launched before."""
        ...

    def launch(self, rows_FB: NDArray[np.int32], table_BM: NDArray[np.int32]) -> Flight:
        """Start a step. The samples of its rows stay in the ring until `wait` has returned.

        Args:
            rows_FB: see `Field`; no slot twice.
            table_BM: the pages of each row's stream.
        """
        ...

    def is_over(self, flight: Flight) -> bool:
        """Return whether `wait` would return at once."""
        ...

    def wait(self, flight: Flight) -> StepFindings:
        """Wait for the oldest flight and count its stages' time."""
        ...

    def export(self, slot: int, kept: KeptFrames | None) -> Export:
        """Copy a slot's state to the host, by name: the state after the steps that were launched before.

        kept: the frames for a whole state; None for only the state that no audio restores (see
            `StepShape.reach_frames`).
        """
        ...

    def load(self, slot: int, kept: KeptFrames | None, state: Mapping[str, memoryview]) -> None:
        """Load an exported state into a slot, after the steps that were launched before.

        kept: as for `export`, in the slot's present pages. Raises KeyError or ValueError if the state does
        not fit.
        """
        ...


def max_windows(num_columns: int) -> int:
    """Return the most speech windows that a row of `num_columns` samples can complete."""
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
