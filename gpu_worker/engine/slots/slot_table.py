"""The scheduler: plans steps from arrays over slots, so that a plan costs no Python time per stream.

Ready streams are served in the order in which they became ready, so that no stream waits for more than one
turn of every other. All rows of a step decode the same number of chunks, the largest power of two that every
row can fill (the end of a stream fills any): several streams that are behind catch up several chunks at a
time, and a single stream that is behind does so whenever no other is ready.

Recordings always have more audio waiting. They get few rows of a step while live streams are open, and one
chunk in each, so that a live stream waits hardly longer than without them. Every step has these rows, so that
recordings go on however many live streams there are. They have steps by themselves in the gaps between live
chunks (`live_gaps.py`).

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
# Less than any number of samples; half the range, so that no difference overflows.
_AT_ONCE: Final = np.iinfo(np.int64).min // 2


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows of the next step, those that have waited longest first.

    `start_B` is each row's first encoder frame, `frames_B` the number of its valid frames, `ends_B` says
    which rows are their stream's last and `chunks_B` how many whole chunks they hold (a last row may have
    frames after them, or no chunk); `order_B` identifies the stream that had the slot when the plan was made.
    `one_each`: whether every row is one whole chunk, and no stream's last, as nearly always. `num_late`: its
    part of the table's `num_late`.
    """

    slots_B: NDArray[np.int64]
    start_B: NDArray[np.int64]
    frames_B: NDArray[np.int64]
    ends_B: NDArray[np.bool_]
    chunks_B: NDArray[np.int64]
    order_B: NDArray[np.int64]
    one_each: bool
    num_late: int = 0

    def of(self, is_chosen_B: NDArray[np.bool_]) -> Plan:
        """Return the plan with some of its rows."""
        return Plan(
            self.slots_B[is_chosen_B],
            self.start_B[is_chosen_B],
            self.frames_B[is_chosen_B],
            self.ends_B[is_chosen_B],
            self.chunks_B[is_chosen_B],
            self.order_B[is_chosen_B],
            self.one_each,
        )


class SlotTable:
    """Arrays over slots.

    order: number of the stream's opening, 0 for a free slot; a higher number is newer.
    fed: samples in the ring or taken from it, over the stream's life.
    planned: encoder frames that are decoded or in a running step.
    decoded: encoder frames whose step is read.
    needed: samples at which the next row can be planned, so that readiness is one comparison: the end of the
        next chunk, below all numbers where no sample follows, and out of reach after the last row.
    finished: whether no sample follows.  ended: whether the last row is planned.
    held: whether the slot waits for a verdict of turn detection.
    limit: encoder frames, whole chunks, past which nothing is planned until the stream's phrases are
    replaced.
    recording: whether the stream is a recording, and not live.
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
        # Plan at which the slot was first seen to be ready: the longest waiting goes first.
        self._ready_since = np.full(num_slots, _NEVER, dtype=np.int64)
        self._num_plans = 0
        # Columns of plans whose rows are one chunk each; never written.
        self._one_S = np.ones(num_slots, dtype=np.int64)
        self._no_end_S = np.zeros(num_slots, dtype=np.bool_)
        # Slots that are ready; None after a change.
        self._ready: NDArray[np.int64] | None = None
        # Chunks of live streams that were planned when the next chunk of their stream was complete already.
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
        """Free a slot."""
        self._ready = None
        self.order[slot] = 0
        self.num_recordings -= int(self.recording[slot])
        self.set_limit(slot, None)
        self.fed[slot] = self.planned[slot] = 0
        self.needed[slot] = _NEVER
        self.finished[slot] = self.ended[slot] = self.held[slot] = self.recording[slot] = False

    def hold(self, slots: Sequence[int]) -> None:
        """Plan nothing for these slots, and end the hold of all others."""
        if slots or self.num_held:
            self._ready = None
            self.held[:] = False
            self.held[slots] = True
            self.num_held = len(slots)

    def set_limit(self, slot: int, frames: int | None) -> None:
        """Plan nothing past `frames` of a slot; None for no such limit."""
        self._ready = None
        self.num_limited += (frames is not None) - (int(self.limit[slot]) != _NEVER)
        self.limit[slot] = _NEVER if frames is None else frames

    def finish(self, slot: int) -> None:
        """Note that no sample follows."""
        self._ready = None
        self.finished[slot] = True
        if not self.ended[slot]:
            self.needed[slot] = _AT_ONCE

    def was_fed(self) -> None:
        """Note that `fed` has changed; to be called after each write to it."""
        self._ready = None

    def ready(self) -> NDArray[np.int64]:
        """Return the slots for which a plan could have a row, in ascending order."""
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
        """Return the number of whole chunks that are in the rings and not planned, over all streams."""
        if not (len(self.ready()) or self.num_held or self.num_limited):
            return 0
        return int(self._chunks_waiting(self.order.nonzero()[0]).sum())

    def _chunks_waiting(self, slots_B: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of whole chunks of each slot that are in the ring and not planned, [B]."""
        clock = self.clock
        frames_B = (self.fed[slots_B] - clock.lookahead_samples) // clock.frame_samples + 1
        waiting_B: NDArray[np.int64] = frames_B // clock.chunk_frames
        waiting_B -= self.planned[slots_B] // clock.chunk_frames
        return np.maximum(waiting_B, 0)

    def plan_from(self, slots_B: NDArray[np.int64], frames_B: NDArray[np.int64]) -> None:
        """Note that `frames_B` frames of slots are planned: the next chunk begins there."""
        self._ready = None
        self.planned[slots_B] = frames_B
        needed_B = self.clock.samples_of_frame_array(frames_B + self.clock.chunk_frames)
        needed_B[self.finished[slots_B]] = _AT_ONCE
        self.needed[slots_B] = needed_B

    def plan(
        self, max_rows: int, max_chunks: int = 1, recording_rows: int = 1, *, in_gap: bool = True
    ) -> Plan | None:
        """Choose the next step's rows and mark them as planned; return None if no slot is ready.

        recording_rows: rows for recordings, while a live stream is open. in_gap: whether recordings may have
        a step by themselves then.
        """
        slots = self.ready()
        if not len(slots) or (not in_gap and self.only_recordings(slots)):
            return None
        self._num_plans += 1
        if self.num_recordings or len(slots) > max_rows:
            self._ready_since[slots] = np.minimum(self._ready_since[slots], self._num_plans)
        recordings_B = self.recording[slots] if self.num_recordings and max_rows > 1 else None
        if recordings_B is not None and recordings_B.any() and self._any_live():
            max_chunks = 1
            recordings = self._longest_waiting(slots[recordings_B], min(recording_rows, max_rows // 2))
            live = self._longest_waiting(slots[~recordings_B], max_rows - len(recordings))
            slots = np.concatenate((live, recordings))
        else:
            slots = self._longest_waiting(slots, max_rows)
        self._ready_since[slots] = _NEVER
        start = self.planned[slots]
        if (self.fed[slots] - self.needed[slots]).max() < self.clock.chunk_samples:
            return self._plan_one_each(slots, start)
        return self._plan_rows(slots, start, max_chunks)

    def _plan_one_each(self, slots: NDArray[np.int64], start: NDArray[np.int64]) -> Plan:
        """Plan the only whole chunk that each of these slots has; more samples may follow."""
        self._ready = None
        self.planned[slots] = start + self.clock.chunk_frames
        self.needed[slots] += self.clock.chunk_samples
        chunks, ends = self._one_S[: len(slots)], self._no_end_S[: len(slots)]
        frames = chunks * self.clock.chunk_frames
        return Plan(slots, start, frames, ends, chunks, self.order[slots], one_each=True)

    def _plan_rows(self, slots: NDArray[np.int64], start: NDArray[np.int64], max_chunks: int) -> Plan:
        """Plan rows of up to `max_chunks` chunks, which may end their streams."""
        waiting, finished = self._chunks_waiting(slots), self.finished[slots]
        ending, left = self._ending(slots, start, finished)
        if self.num_limited:
            # A row that stops at its limit is not its stream's last, even if the end is known.
            limit = self.limit[slots]
            waiting = np.minimum(waiting, (limit - start) // self.clock.chunk_frames)
            finished[ending[start[ending] + left > limit[ending]]] = False
            ending, left = self._ending(slots, start, finished)
        most = self._chunks(waiting[~finished] if len(ending) else waiting, left, max_chunks)
        chunks = np.minimum(waiting, most)
        num_late = 0
        if waiting.max() > 1:
            late = np.maximum(np.minimum(chunks, waiting - 1), 0)
            num_late = int((late * ~self.recording[slots]).sum())
            self.num_late += num_late
        frames = chunks * self.clock.chunk_frames
        ends = np.zeros(len(slots), dtype=np.bool_)
        if len(ending):
            # The last whole chunk ends the stream too if no frame comes after it.
            ends[ending] = left <= most * self.clock.chunk_frames
            frames[ending] = np.where(ends[ending], left, frames[ending])
        self.plan_from(slots, start + frames)
        self.ended[slots] = ends
        self.needed[slots[ends]] = _NEVER
        order = self.order[slots]
        return Plan(slots, start, frames, ends, chunks, order, one_each=False, num_late=num_late)

    def _ending(
        self, slots: NDArray[np.int64], start: NDArray[np.int64], finished: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return which rows are of finished streams, and the frames that these have left."""
        ending = finished.nonzero()[0]
        if not len(ending):
            return ending, ending
        total = [self.clock.total_frames(fed) for fed in self.fed[slots[ending]].tolist()]
        return ending, np.array(total, dtype=np.int64) - start[ending]

    def _longest_waiting(self, slots_B: NDArray[np.int64], most: int) -> NDArray[np.int64]:
        """Return the slots that have waited longest, at most `most`."""
        if len(slots_B) <= most:
            return slots_B
        return slots_B[np.argsort(self._ready_since[slots_B], kind="stable")[:most]]

    def _chunks(self, waiting: NDArray[np.int64], left: NDArray[np.int64], max_chunks: int) -> int:
        """Return the chunks of every row. waiting: of streams that go on; left: frames of ending streams."""
        if max_chunks == 1:
            return 1
        most = int(waiting.min()) if len(waiting) else int(-(-left.max() // self.clock.chunk_frames))
        return 1 << (max(1, min(most, max_chunks)).bit_length() - 1)

    def new_samples(self, plan: Plan) -> NDArray[np.int64]:
        """Return how many samples [B] each row brings that no row before it brought, up to a stream's end."""
        begin_B = self.clock.samples_of_frame_array(plan.start_B)
        end_B = self.clock.samples_of_frame_array(plan.start_B + plan.frames_B)
        end_B = np.where(plan.ends_B, self.fed[plan.slots_B], end_B)
        return end_B - begin_B

    def unplan(self, plan: Plan) -> None:
        """Undo the newest plan, whose rows have not been launched; its streams keep their turn."""
        self.num_late -= plan.num_late
        alive = self.order[plan.slots_B] == plan.order_B
        slots = plan.slots_B[alive]
        self.ended[slots] = False
        self.plan_from(slots, plan.start_B[alive])
        self._ready_since[slots] = 0
