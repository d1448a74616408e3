"""When live streams' next chunks are due, so that recordings have what live streams leave of the engine.

A step cannot be left: what somebody says now would wait for the rest of a step that a recording has begun
by itself a moment before, on a CPU for some 10 ms.  Live streams send a chunk's audio in a chunk's duration,
so it is known whether the next one is near, and whether one that is there has waited for a step to end.
Recordings go along with steps of live streams for which no chunk has waited, and by themselves once a chunk
that was due has not come.  They go along with one in a few of the others too: nothing starves.

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

# A chunk is waited for so long past the time at which it was due.
_GRACE_S: Final = 0.02
# Weight of what was seen last: in a stream's rhythm, where it came late, and in a step's time, where it was
# shorter. A longer one counts at once: a gap that is too short for it makes somebody wait.
_NEW_RHYTHM: Final = 0.1
_NEW_STEP: Final = 0.3
# Of a step's time this much is forgotten with each step of live streams: one step that was held up by chance
# would otherwise close all gaps for good, for then no other one is timed.
_FADES: Final = 0.002
# After so many steps without recordings, since chunks had waited for them, one takes recordings along.
_MOST_LEFT_OUT: Final = 8


class LiveGaps:
    """Learns the rhythm of live streams from their rows.

    Args:
        num_slots: of the engine.
        chunk_s: duration of a chunk.
        clock: seconds, monotonic.
    """

    def __init__(self, num_slots: int, chunk_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._chunk_s = chunk_s
        self._due_S: NDArray[np.float64] = np.full(num_slots, -np.inf)
        # What a step of recordings by themselves takes.
        self._step_s = 0.0
        # When the last step ended, and how many steps since one that took recordings along.
        self._ended_at_s = -np.inf
        self._left_out = 0

    def ended(self) -> None:
        """Note that a step has ended."""
        self._ended_at_s = self.clock()

    def recording_rows(self, table: SlotTable, shape: StepShape) -> int:
        """Return the rows that recordings may have in the next step, beside live streams if there are any.

        None where a live stream's chunk came while the last step ran. Steps that overlap do not wait for each
        other, and are large: there recordings always have their share.
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
        """Note that chunks of these slots' live streams are there, and go into a step now.

        One that is seen a little late came while another step ran: its stream's next one is due as before.
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
        # What takes longer was held up by something else.
        seconds = min(seconds, self._chunk_s / 2)
        self._step_s += (_NEW_STEP if seconds < self._step_s else 1.0) * (seconds - self._step_s)

    def drop(self, slot: int) -> None:
        """Forget the slot's stream, which is over."""
        self._due_S[slot] = -np.inf

    def wait_s(self) -> float:
        """Return the seconds for which recordings begin no step by themselves; 0 for none."""
        ahead_S = self._due_S - self.clock()
        near_S = ahead_S[(ahead_S > -_GRACE_S) & (ahead_S < self._step_s)]
        return float(near_S.min()) + _GRACE_S if len(near_S) else 0.0
