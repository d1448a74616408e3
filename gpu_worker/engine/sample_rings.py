"""Audio of every slot between `feed` and the step that takes it.

Sample n of a slot's stream stands in the slot's ring at n modulo its length, in memory that the device
reads by itself.  What does not fit (a stream that is far behind) waits in a queue beside the ring and
moves up as steps make room.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from gpu_worker.engine.samples import PCM16, PCM16_SCALE, Samples
from gpu_worker.engine.slot_table import SlotTable


class SampleRings:
    """Writes samples where the steps look for them.

    Args:
        ring_SC: the rings.
        table: whose `fed` counts what has been written; steps free what lies before their streams' own
            first sample, see `free`.
    """

    def __init__(self, ring_SC: NDArray[np.float32], table: SlotTable) -> None:
        self._rings = list(ring_SC)
        self._length = ring_SC.shape[1]
        self._table = table
        # Samples before these are no more needed; see `free`.
        self.freed: NDArray[np.int64] = np.zeros(len(self._rings), dtype=np.int64)
        self._beside: dict[int, deque[Samples]] = {}

    def open(self, slot: int, samples: int) -> None:
        """Begin a stream whose first `samples` samples were taken before."""
        self.freed[slot] = samples

    def close(self, slot: int) -> None:
        """Forget what waits beside the ring."""
        self._beside.pop(slot, None)

    def beside(self, slot: int) -> int:
        """Samples that wait beside the ring."""
        return sum(len(part) for part in self._beside.get(slot, ()))

    def append(self, slot: int, samples: Samples) -> None:
        """Queue samples; keeps no reference unless they have to wait beside the ring."""
        if self._beside and slot in self._beside:
            self._beside[slot].append(samples.copy())
            return
        written = self._write(slot, samples)
        if written < len(samples):
            self._beside[slot] = deque([samples[written:].copy()])

    def free(self, slots: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        """Say that samples before `ends` are no more needed; what waits beside those rings moves up."""
        self.freed[slots] = ends
        if self._beside:
            for slot in slots.tolist():
                if slot in self._beside:
                    self._move_up(slot)

    def _move_up(self, slot: int) -> None:
        parts = self._beside[slot]
        while parts:
            part = parts[0]
            written = self._write(slot, part)
            if written < len(part):
                parts[0] = part[written:]
                return
            parts.popleft()
        del self._beside[slot]

    def copy(self, slot: int, first: int, end: int) -> NDArray[np.float32]:
        """Samples first .. end - 1 of a slot's stream, all in its ring."""
        at, ring = first % self._length, self._rings[slot]
        if at + end - first <= self._length:
            part: NDArray[np.float32] = ring[at : at + end - first].copy()
            return part
        return np.concatenate([ring[at:], ring[: (end - first) - (self._length - at)]])

    def _write(self, slot: int, samples: Samples) -> int:
        fed: int = self._table.fed.item(slot)
        count: int = min(len(samples), self._length - fed + self.freed.item(slot))
        if count <= 0:
            return 0
        at, ring = fed % self._length, self._rings[slot]
        if at + count <= self._length:
            _store(samples if count == len(samples) else samples[:count], ring[at : at + count])
        else:
            first = self._length - at
            _store(samples[:first], ring[at:])
            _store(samples[first:count], ring[: count - first])
        self._table.fed[slot] = fed + count
        return count


def _store(samples: Samples, target: NDArray[np.float32]) -> None:
    if samples.dtype is PCM16:
        np.multiply(samples, PCM16_SCALE, target)
    else:
        target[:] = samples
