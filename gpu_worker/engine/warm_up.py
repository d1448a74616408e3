"""Warm-up of slots: they decode the audio before their stream's snapshot again.

Keys, values and convolution caches of a stream are functions of its last seconds of audio alone: a layer
reaches back no further than its left context, and all layers together `StepShape.reach_frames`. So a snapshot
needs none of them if that audio is kept. A stream that is opened from such a snapshot begins that much
earlier, in a slot with the state of an earlier stream, and its rows have no outputs. At the snapshot that
earlier state is out of reach of every layer. Then the slot gets the state that audio does not restore.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gpu_worker.engine.snapshot import Snapshot
from gpu_worker.engine.stream import Stream
from gpu_worker.turn.settings import TurnSettings


def first_frame(frames: int, reach_frames: int) -> int:
    """Return the frame at which to begin so that the caches are right after `frames`, the end of a chunk."""
    return max(0, frames - reach_frames)


@dataclass(frozen=True, slots=True)
class WarmUp:
    """The warm-up of a stream to its snapshot, which covers `frames` frames and `samples` samples."""

    state: Stream
    settings: TurnSettings
    snapshot: Snapshot
    frames: int
    samples: int


class WarmUps:
    """The warm-ups of slots that are running."""

    def __init__(self, num_slots: int) -> None:
        self._by_slot: dict[int, WarmUp] = {}
        self.is_warming_S: NDArray[np.bool_] = np.zeros(num_slots, dtype=np.bool_)

    def add(self, warm_up: WarmUp) -> None:
        """Begin the warm-up of a slot."""
        self._by_slot[warm_up.state.slot] = warm_up
        self.is_warming_S[warm_up.state.slot] = True

    def get(self, slot: int) -> WarmUp | None:
        """Return the warm-up of a slot, or None."""
        return self._by_slot.get(slot)

    def drop(self, slot: int) -> None:
        """Forget a slot that is warm, or whose stream is gone."""
        if self._by_slot.pop(slot, None) is not None:
            self.is_warming_S[slot] = False

    def reached(self, decoded_S: NDArray[np.int64]) -> Iterator[WarmUp]:
        """Yield the warm-ups whose slots have decoded all that their snapshots cover."""
        for slot, warm_up in list(self._by_slot.items()):
            if decoded_S[slot] >= warm_up.frames:
                yield warm_up

    def __contains__(self, slot: int) -> bool:
        return slot in self._by_slot

    def __bool__(self) -> bool:
        return bool(self._by_slot)
