"""Gaps between the chunks of live streams, in which recordings run.

A step cannot be interrupted: live audio would wait for the rest of a step that a recording has just begun,
which takes some 10 ms on a CPU. Live streams send a chunk's audio in a chunk's duration, so it can be
predicted when the next chunk is due, and a chunk that has waited for a step to end can be recognised.
Recordings join steps of live streams for which no chunk has waited, and run by themselves once a due chunk
has not come. They also join one in a few of the other steps, so that they never starve.

Shape suffixes: S slots, B rows of a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpu_worker.engine.slots.slot_table import SlotTable
from gpu_worker.engine.steps import StepShape

# How long after its due time a chunk is awaited.
_GRACE_S: Final = 0.02
# Weight of the last observation: in a stream's rhythm, if a chunk came late, and in a step's time, if it was
# shorter. A longer time counts at once: in a gap that is too short for a step, live audio waits.
_NEW_RHYTHM: Final = 0.1
_NEW_STEP: Final = 0.3
# Share of a step's time that is forgotten with each step of live streams: one step that was delayed by chance
# would otherwise close all gaps for good, since then no other step is timed.
_FADES: Final = 0.002
# After this many steps without recordings, since chunks had waited for them, one step takes recordings.
_MOST_LEFT_OUT: Final = 8


class LiveGaps:
    """Learns the rhythm of live streams from their rows.

    Args:
        num_slots: slots of the engine.
        chunk_s: duration of a chunk, in seconds.
        clock: returns monotonic seconds.
    """

    def __init__(self, num_slots: int, chunk_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._chunk_s = chunk_s
        self._due_S: NDArray[np.float64] = np.full(num_slots, -np.inf)
        # Duration of a step of recordings by themselves.
        self._step_s = 0.0
        # End of the last step, and number of steps since one that took recordings.
        self._ended_at_s = -np.inf
        self._left_out = 0

    def ended(self) -> None:
        """Note that a step has ended."""
        self._ended_at_s = self.clock()

    def recording_rows(self, table: SlotTable, shape: StepShape) -> int:
        """Return the rows that recordings may have in the next step, beside live streams if there are any.

        0 where a live stream's chunk came while the last step ran, except after several such steps in a row.
        Steps that overlap do not wait for each other, and are large: with them recordings always have their
        share.
        """
        if not table.num_recordings or shape.overlaps:
            return shape.recording_rows
        ready = table.ready()
        live = ready[~table.recording[ready]]
        if not len(live):
            return shape.recording_rows
        waited = bool((self._due_S[live] < self._ended_at_s).any())
        self._left_out = self._left_out + 1 if waited and self._left_out < _MOST_LEFT_OUT else 0
        return 0 if self._left_out else shape.recording_rows

    def came(self, slots_B: NDArray[np.int64]) -> None:
        """Note that chunks of these slots' live streams have come, and go into a step now.

        A chunk that is seen a little late came while another step ran: the next one is due as before.
        """
        now = self.clock()
        late_B = now - self._due_S[slots_B]
        is_late_B = (late_B >= 0) & (late_B < self._chunk_s / 2)
        began_B = np.where(is_late_B, now - (1 - _NEW_RHYTHM) * late_B, now)
        self._due_S[slots_B] = began_B + self._chunk_s
        if len(slots_B):
            self._step_s *= 1 - _FADES

    def took(self, seconds: float) -> None:
        """Note how long a step of recordings by themselves took."""
        # A step that takes longer was delayed by something else.
        seconds = min(seconds, self._chunk_s / 2)
        self._step_s += (_NEW_STEP if seconds < self._step_s else 1.0) * (seconds - self._step_s)

    def drop(self, slot: int) -> None:
        """Forget the slot's stream, which has ended."""
        self._due_S[slot] = -np.inf

    def wait_s(self) -> float:
        """Return the seconds for which recordings may begin no step by themselves; 0 for none."""
        ahead_S = self._due_S - self.clock()
        near_S = ahead_S[(ahead_S > -_GRACE_S) & (ahead_S < self._step_s)]
        return float(near_S.min()) + _GRACE_S if len(near_S) else 0.0
