"""Rings of audio: the samples of every slot between `feed` and the step that takes them.

Sample n of a slot's stream is in the slot's ring at n modulo its length, in memory that the device reads
directly: as pcm16, as clients send it, or as float32. Samples that do not fit (of a stream that is far
behind) wait in a queue beside the ring and move up as steps make room.

Counters are read and written through memory views: an item of an array costs three times as much time.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from gpu_worker.engine.slots.samples import PCM16, Samples, float_samples
from gpu_worker.engine.slots.slot_table import SlotTable
from gpu_worker.engine.steps import RingMemory


class SampleRings:
    """Writes samples to the rings from which steps read them.

    Args:
        memory: the rings.
        table: its `fed` counts the written samples; steps free samples that are not needed any more, see
            `free`.
    """

    def __init__(self, memory: RingMemory, table: SlotTable) -> None:
        self._memory = memory
        self._length = memory.num_samples
        self._table = table
        num_slots = len(table.fed)
        # Samples before these are not needed any more; see `free`.
        self.freed: NDArray[np.int64] = np.zeros(num_slots, dtype=np.int64)
        # Slots whose ring holds float32; a stream whose samples come as pcm16 has half as much to copy.
        self.is_float: NDArray[np.bool_] = np.zeros(num_slots, dtype=np.bool_)
        self._fed, self._freed = memoryview(table.fed), memoryview(self.freed)  # type: ignore[arg-type]
        # All rings as one array of pcm16; a slot's ring is the first half of its part.
        self._pcm16 = memoryview(memory.float32_SC.reshape(-1).view(np.int16))  # type: ignore[arg-type]
        # Slots whose samples are not simply written: float32, or samples that wait or may have to wait.
        self._odd = bytearray(num_slots)
        # Samples that a slot takes for now; later samples wait beside its ring.
        self._until: dict[int, int] = {}
        self._beside: dict[int, deque[Samples]] = {}

    def open(self, slot: int, samples: int, until: int | None = None) -> None:
        """Begin a stream whose first `samples` samples were taken before.

        until: samples from this one on wait beside the ring until `lift`.
        """
        self.freed[slot] = samples
        self.is_float[slot] = False
        self._odd[slot] = until is not None
        if until is not None:
            self._until[slot] = until

    def lift(self, slot: int) -> None:
        """End the bound of `until`: take samples again, the waiting ones first."""
        del self._until[slot]
        self._odd[slot] = bool(self.is_float[slot])
        if slot in self._beside:
            self._odd[slot] = True
            self._move_up(slot)

    def close(self, slot: int) -> None:
        """Drop the samples that wait beside the ring."""
        self._beside.pop(slot, None)
        self._until.pop(slot, None)

    def beside(self, slot: int) -> int:
        """Return how many samples wait beside the ring."""
        return sum(len(part) for part in self._beside.get(slot, ()))

    def append_pcm16(self, slot: int, samples: NDArray[np.int16]) -> None:
        """Queue samples; keeps no reference to them."""
        length, fed, count = self._length, self._fed[slot], len(samples)
        if self._odd[slot] or fed + count - self._freed[slot] > length:
            self.append(slot, samples)
            return
        ring, at, data = 2 * slot * length, fed % length, samples.data
        if at + count <= length:
            self._pcm16[ring + at : ring + at + count] = data
        else:
            first = length - at
            self._pcm16[ring + at : ring + length] = data[:first]
            self._pcm16[ring : ring + count - first] = data[first:]
        self._fed[slot] = fed + count
        self._table.was_fed()

    def append(self, slot: int, samples: Samples) -> None:
        """Queue samples of either type; keeps no reference to them."""
        if slot in self._beside:
            self._beside[slot].append(samples.copy())
            return
        written = self._write(slot, samples)
        if written < len(samples):
            self._beside[slot] = deque([samples[written:].copy()])
            self._odd[slot] = True

    def free(self, slots: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        """Free the samples before `ends`; samples that wait beside those rings move up."""
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
        self._odd[slot] = bool(self.is_float[slot]) or slot in self._until

    def copy(self, slot: int, first: int, end: int) -> NDArray[np.float32]:
        """Return samples first .. end - 1 of a slot's stream, all in its ring."""
        return float_samples(self._copy(slot, first, end))

    def _copy(self, slot: int, first: int, end: int) -> Samples:
        ring = self._memory.of(slot, is_float=bool(self.is_float[slot]))
        at = first % self._length
        if at + end - first <= self._length:
            return ring[at : at + end - first].copy()
        return np.concatenate([ring[at:], ring[: (end - first) - (self._length - at)]])

    def _write(self, slot: int, samples: Samples) -> int:
        """Write the samples that fit; return how many they are."""
        if samples.dtype is not PCM16 and not self.is_float[slot]:
            if self._table.planned[slot] != self._table.decoded[slot]:
                # A running step reads the ring as it is.
                return 0
            self._become_float(slot)
        is_float = bool(self.is_float[slot])
        fed = self._fed[slot]
        count: int = min(len(samples), self._length - fed + self._freed[slot])
        if slot in self._until:
            count = min(count, self._until[slot] - fed)
        if count <= 0:
            return 0
        ring, part = self._memory.of(slot, is_float=is_float), samples[:count]
        if is_float:
            part = float_samples(part)
        at = fed % self._length
        first = min(count, self._length - at)
        ring[at : at + first] = part[:first]
        ring[: count - first] = part[first:]
        self._fed[slot] = fed + count
        self._table.was_fed()
        return count

    def _become_float(self, slot: int) -> None:
        """Keep a stream's samples as float32 from now on, including those in the ring."""
        first, end = self._freed[slot], self._fed[slot]
        waiting = self.copy(slot, first, end)
        self.is_float[slot] = True
        self._odd[slot] = True
        ring = self._memory.of(slot, is_float=True)
        ring[np.arange(first, end) % self._length] = waiting
