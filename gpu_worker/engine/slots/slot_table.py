"""The scheduler: what it needs to know of every slot, as arrays, so that a plan costs nothing per stream.

Ready streams are served in the order in which they became ready, so that no stream waits for more than one
turn of every other.  All rows of a step decode the same number of chunks, the largest power of two that
every row can fill (the end of a stream fills any): streams that are behind together catch up several chunks
at a time, and one that is behind alone does whenever no other is ready.

Recordings, which have always more audio than there is time for, get few rows of a step while live streams are
open, and one chunk in each: what a live stream waits for is then hardly longer than without them. They have
that much of every step, so that they go on however many live streams there are.  They have steps by
themselves in the gaps between live chunks (`live_gaps.py`).

Shape suffixes: S slots, B rows of a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpu_worker.engine.slots.clock import ChunkClock

_NEVER: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows of the next step, those that have waited longest first.

    `start_B` is each row's first encoder frame, `frames_B` its valid ones, `ends_B` says which rows are
    their stream's last (`has_ends`: whether any is) and `chunks_B` how many whole chunks they hold (a last
    row may have frames behind them, or none); `order_B` names the stream that had the slot when the plan was
    made.
    """

    slots_B: NDArray[np.int64]
    start_B: NDArray[np.int64]
    frames_B: NDArray[np.int64]
    ends_B: NDArray[np.bool_]
    chunks_B: NDArray[np.int64]
    order_B: NDArray[np.int64]
    has_ends: bool


class SlotTable:
    """Arrays over slots.

    order: number of the opening that has the slot, 0 for a free one; a higher one is newer.
    fed: samples in the ring or taken from it, over the stream's life.
    planned: encoder frames that are decoded or in a step under way.
    decoded: encoder frames whose step is over.
    needed: samples at which the next row can be planned, so that who is ready costs one comparison: where the
        next chunk is whole, none where no sample follows, and never behind the last row.
    finished: no sample follows.  ended: the last row is planned.
    held: nothing is planned until turn detection has its verdict.
    limit: encoder frames, whole chunks, past which nothing is planned until the stream's phrases are others.
    recording: the stream is a recording, not somebody who speaks now.
    """

    def __init__(self, num_slots: int, clock: ChunkClock) -> None:
        self.clock = clock
        self.order = np.zeros(num_slots, dtype=np.int64)
        self.fed = np.zeros(num_slots, dtype=np.int64)
        self.planned = np.zeros(num_slots, dtype=np.int64)
        self.decoded = np.zeros(num_slots, dtype=np.int64)
        self.needed = np.full(num_slots, _NEVER, dtype=np.int64)
        self.finished = np.zeros(num_slots, dtype=np.bool_)
        self.ended = np.zeros(num_slots, dtype=np.bool_)
        self.held = np.zeros(num_slots, dtype=np.bool_)
        self.num_held = 0
        self.limit = np.full(num_slots, _NEVER, dtype=np.int64)
        self.num_limited = 0
        self.recording = np.zeros(num_slots, dtype=np.bool_)
        self.num_recordings = 0
        # Plan at which the slot was first seen to be ready: who waits longest goes first.
        self._ready_since = np.full(num_slots, _NEVER, dtype=np.int64)
        self._num_plans = 0
        # Slots that are ready, until something changes.
        self._ready: NDArray[np.int64] | None = None
        # Chunks planned when the next one of their stream was whole already.
        self.num_late = 0

    def open(self, slot: int, order: int, frames: int, samples: int, *, recording: bool = False) -> None:
        """Give a free slot to a stream that has decoded `frames` and taken `samples` before."""
        self._ready = None
        self.order[slot] = order
        self.fed[slot] = samples
        self.decoded[slot] = frames
        self.finished[slot] = self.ended[slot] = False
        self.plan_from(np.array([slot]), np.array([frames]))
        self._ready_since[slot] = _NEVER
        self.recording[slot] = recording
        self.num_recordings += recording

    def close(self, slot: int) -> None:
        """Make a slot free."""
        self._ready = None
        self.order[slot] = 0
        self.num_recordings -= int(self.recording[slot])
        self.set_limit(slot, None)
        self.fed[slot] = self.planned[slot] = 0
        self.needed[slot] = _NEVER
        self.finished[slot] = self.ended[slot] = self.held[slot] = self.recording[slot] = False

    def hold(self, slots: Sequence[int]) -> None:
        """Plan nothing for these slots, and no longer hold any other."""
        if slots or self.num_held:
            self._ready = None
            self.held[:] = False
            self.held[slots] = True
            self.num_held = len(slots)

    def set_limit(self, slot: int, frames: int | None) -> None:
        """Plan nothing past so many frames of a slot; None for no such limit."""
        self._ready = None
        self.num_limited += (frames is not None) - (int(self.limit[slot]) != _NEVER)
        self.limit[slot] = _NEVER if frames is None else frames

    def finish(self, slot: int) -> None:
        """Note that no sample follows."""
        self._ready = None
        self.finished[slot] = True
        if not self.ended[slot]:
            self.needed[slot] = 0

    def was_fed(self) -> None:
        """Note that `fed` has changed; to be called after each write to it."""
        self._ready = None

    def ready(self) -> NDArray[np.int64]:
        """Slots that a plan could have a row for, in order."""
        if self._ready is None:
            is_ready_S = self.fed >= self.needed
            if self.num_held:
                is_ready_S &= ~self.held
            if self.num_limited:
                is_ready_S &= self.planned < self.limit
            self._ready = is_ready_S.nonzero()[0]
        return self._ready

    def only_recordings(self, slots: NDArray[np.int64]) -> bool:
        """Return whether all of these slots have recordings, while live streams are open."""
        return bool(self.num_recordings and self.recording[slots].all()) and self._any_live()

    def _any_live(self) -> bool:
        """Return whether a stream that is no recording is open."""
        return bool((~self.recording & (self.order > 0)).any())

    def num_chunks_waiting(self) -> int:
        """Whole chunks that are in the rings and not planned, over all streams."""
        if not (len(self.ready()) or self.num_held or self.num_limited):
            return 0
        return int(self._chunks_waiting(self.order.nonzero()[0]).sum())

    def _chunks_waiting(self, slots_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Whole chunks of slots that are in the ring and not planned."""
        clock = self.clock
        frames_B = (self.fed[slots_B] - clock.lookahead_samples) // clock.frame_samples + 1
        waiting_B: NDArray[np.int64] = frames_B // clock.chunk_frames
        waiting_B -= self.planned[slots_B] // clock.chunk_frames
        return np.maximum(waiting_B, 0)

    def plan_from(self, slots_B: NDArray[np.int64], frames_B: NDArray[np.int64]) -> None:
        """Say that so many frames of slots are planned: the next chunk begins there."""
        self._ready = None
        self.planned[slots_B] = frames_B
        needed_B = self.clock.samples_of_frame_array(frames_B + self.clock.chunk_frames)
        needed_B[self.finished[slots_B]] = 0
        self.needed[slots_B] = needed_B

    def plan(
        self, max_rows: int, max_chunks: int = 1, recording_rows: int = 1, *, in_gap: bool = True
    ) -> Plan | None:
        """Choose the next step's rows and mark them as planned; None when nothing is ready.

        recording_rows: rows for recordings, while a live stream is open.  in_gap: whether recordings may have
        a step by themselves then.
        """
        slots = self.ready()
        if not len(slots) or (not in_gap and self.only_recordings(slots)):
            return None
        self._num_plans += 1
        recordings_B = self.recording[slots]
        if self.num_recordings or len(slots) > max_rows:
            self._ready_since[slots] = np.minimum(self._ready_since[slots], self._num_plans)
        if max_rows > 1 and self.num_recordings and recordings_B.any() and self._any_live():
            max_chunks = 1
            recordings = self._longest_waiting(slots[recordings_B], min(recording_rows, max_rows // 2))
            live = self._longest_waiting(slots[~recordings_B], max_rows - len(recordings))
            slots = np.concatenate((live, recordings))
        else:
            slots = self._longest_waiting(slots, max_rows)
        self._ready_since[slots] = _NEVER
        waiting, start, finished = self._chunks_waiting(slots), self.planned[slots], self.finished[slots]
        ending, left = self._ending(slots, start, finished)
        if self.num_limited:
            # A row that stops at its limit is one that goes on, whether or not its end is known.
            limit = self.limit[slots]
            waiting = np.minimum(waiting, (limit - start) // self.clock.chunk_frames)
            finished[ending[start[ending] + left > limit[ending]]] = False
            ending, left = self._ending(slots, start, finished)
        most = self._chunks(waiting[~finished] if len(ending) else waiting, left, max_chunks)
        chunks = np.minimum(waiting, most)
        if waiting.max() > 1:
            self.num_late += int(np.maximum(np.minimum(chunks, waiting - 1), 0).sum())
        frames = chunks * self.clock.chunk_frames
        ends = np.zeros(len(slots), dtype=np.bool_)
        if len(ending):
            # The last whole chunk closes the stream too when no frame comes after it.
            ends[ending] = left <= most * self.clock.chunk_frames
            frames[ending] = np.where(ends[ending], left, frames[ending])
        self.plan_from(slots, start + frames)
        has_ends = bool(len(ending)) and bool(ends.any())
        if has_ends:
            self.ended[slots] = ends
            self.needed[slots[ends]] = _NEVER
        return Plan(slots, start, frames, ends, chunks, self.order[slots], has_ends)

    def _ending(
        self, slots: NDArray[np.int64], start: NDArray[np.int64], finished: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of the rows are of finished streams, and the frames that those have left."""
        ending = finished.nonzero()[0]
        if not len(ending):
            return ending, ending
        total = [self.clock.total_frames(fed) for fed in self.fed[slots[ending]].tolist()]
        return ending, np.array(total, dtype=np.int64) - start[ending]

    def _longest_waiting(self, slots_B: NDArray[np.int64], most: int) -> NDArray[np.int64]:
        """Return those of the slots that have their turn, at most so many."""
        if len(slots_B) <= most:
            return slots_B
        return slots_B[np.argsort(self._ready_since[slots_B], kind="stable")[:most]]

    def _chunks(self, waiting: NDArray[np.int64], left: NDArray[np.int64], max_chunks: int) -> int:
        """Chunks of every row, given whole ones of streams that go on and frames of those that end."""
        if max_chunks == 1:
            return 1
        most = int(waiting.min()) if len(waiting) else int(-(-left.max() // self.clock.chunk_frames))
        return 1 << (max(1, min(most, max_chunks)).bit_length() - 1)

    def unplan(self, plan: Plan) -> None:
        """Undo the newest plan, whose rows have not been launched; its streams keep their turn."""
        alive = self.order[plan.slots_B] == plan.order_B
        slots = plan.slots_B[alive]
        self.ended[slots] = False
        self.plan_from(slots, plan.start_B[alive])
        self._ready_since[slots] = 0
