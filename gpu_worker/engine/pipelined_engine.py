"""The engine for a device that works beside the host: a step is launched before the last one is read.

It keeps the central invariant of `engine.NativeEngine` (the outputs of a stream are a function of its
samples and options alone) and its outputs, but for bare acknowledgements, of which it gives one a second
of audio and not one a chunk.  What differs is the host's part: slots are rows of arrays, samples go
straight to where the device fetches them, and only streams that have something to say cost Python.
`step` launches the next step, then reads the one before it, so that the device never waits for the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.block_manager import BlockManager
from gpu_worker.engine.clock import ChunkClock
from gpu_worker.engine.engine import EngineConfig
from gpu_worker.engine.interface import (
    ENGINE_SAMPLE_RATE,
    EngineError,
    EngineStats,
    OutOfPages,
    StreamFinished,
    StreamOutput,
)
from gpu_worker.engine.open_streams import OpenStreams
from gpu_worker.engine.outputs import failed_output
from gpu_worker.engine.pipelined_stream import PipelinedStream
from gpu_worker.engine.sample_rings import SampleRings
from gpu_worker.engine.samples import FLOAT32, PCM16, Samples, float_samples
from gpu_worker.engine.slot_snapshots import SlotSnapshots
from gpu_worker.engine.slot_table import Plan, SlotTable
from gpu_worker.engine.step_results import StepResults
from gpu_worker.engine.steps import UNKNOWN_END, Field, Flight, Steps
from gpu_worker.engine.transcript import Transcript
from gpu_worker.model.tokenizer import Tokenizer
from gpu_worker.turn.stage import TurnJudge, TurnStage

# Louder samples overflow the power spectrum; full scale is 1.0.
_MAX_SAMPLE = 1e6
# Gauges are counted over all slots, for a status line that is read once a second: not after every step.
_GAUGES_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step under way: its plan and who runs it."""

    plan: Plan
    flight: Flight


class PipelinedEngine:
    """See the module.

    Args:
        steps: runs steps on the device and holds the state.
        config: sizes and switches; a row of a step is one chunk.
        blocks: pages of the key/value cache.
        clock, tokenizer: of the model.
        left_frames: of the attention context.
        fingerprint: names the model and the layout of its state, for snapshots.
        eou_id: the model's token for an end of utterance; None where it has none.
        prompt_of: index of a stream's language prompt; raises UnsupportedOption.
        judge: smart-turn, where it runs.
        stats: what `steps` counts into.
    """

    def __init__(
        self,
        steps: Steps,
        config: EngineConfig,
        blocks: BlockManager,
        *,
        clock: ChunkClock,
        tokenizer: Tokenizer,
        left_frames: int,
        fingerprint: str,
        eou_id: int | None,
        prompt_of: Callable[[StreamOptions], int] = lambda _: 0,
        judge: TurnJudge | None,
        stats: EngineStats,
    ) -> None:
        self.config = config
        self.clock = clock
        self.steps = steps
        self._blocks = blocks
        self._tokenizer = tokenizer
        self._prompt_of = prompt_of
        self._stats = stats
        self._frame_s = clock.frame_samples / ENGINE_SAMPLE_RATE
        self._table = SlotTable(config.num_slots, clock)
        self._rings = SampleRings(steps.ring_SC, self._table)
        self._turns = TurnStage(judge, has_eou=eou_id is not None)
        self._streams: OpenStreams[PipelinedStream] = OpenStreams(config.num_slots)
        self._by_slot: list[PipelinedStream | None] = [None] * config.num_slots
        self._prompts = [steps.state.default_prompt] * config.num_slots
        self._fresh: list[int] = []
        self._finishing: dict[StreamId, PipelinedStream] = {}
        self._num_opened = 0
        self._listens = np.zeros(config.num_slots, dtype=np.bool_)
        # Pages that each slot has, for finding those that need one more.
        self._held_pages = np.zeros(config.num_slots, dtype=np.int64)
        self._launched: _Launched | None = None
        self._snapshots = SlotSnapshots(
            steps,
            self._table,
            self._rings,
            blocks,
            self._turns,
            fingerprint=fingerprint,
            left_frames=left_frames,
        )
        self._results = StepResults(self._by_slot, self._rings, self._turns, eou_id, self._forget)
        # Outputs that were read before `step` could return them.
        self._unsent: list[StreamOutput] = []
        self._gauges_due = 0.0

    # ------------------------------------------------------------------ streams

    @property
    def capacity(self) -> int:
        return self.config.num_slots

    @property
    def stats(self) -> EngineStats:
        return self._stats

    def open(self, stream: StreamId, options: StreamOptions, snapshot: bytes | None = None) -> None:
        slot = self._streams.vacant_slot(stream)
        self._prompt_of(options)
        restored = self._snapshots.read(snapshot) if snapshot is not None else None
        settings = self.config.turns_of(options)
        self._num_opened += 1
        transcript = Transcript(self._tokenizer, self._frame_s, with_words=options.words)
        state = PipelinedStream(stream, slot, self._num_opened, options, transcript, settings.enabled)
        self._streams.add(state)
        self._by_slot[slot] = state
        self._listens[slot] = state.listens
        try:
            if restored is None:
                self._table.open(slot, state.order, 0, 0)
                self._rings.open(slot, 0)
                self._fresh.append(slot)
                if state.listens:
                    self._turns.open(stream, settings)
            else:
                self._unsent += self._snapshots.restore(state, settings, restored)
                self._held_pages[slot] = len(self._blocks.pages(slot))
        except BaseException:
            self._forget(state)
            raise
        self._stats.open_streams = len(self._streams)

    def feed(self, stream: StreamId, samples: Samples) -> None:
        state = self._streams.get(stream)
        if state.finish_asked:
            raise StreamFinished(f"Stream {stream} was finished; no samples can follow.")
        # pcm16 is finite and not too loud.  Else one pass tells of both; vdot does not warn, as dot does.
        if samples.dtype is not PCM16 or samples.ndim != 1:
            wrong = samples.dtype != FLOAT32 or samples.ndim != 1
            if wrong or not np.vdot(samples, samples) < _MAX_SAMPLE:
                samples = np.clip(float_samples(samples), -_MAX_SAMPLE, _MAX_SAMPLE)
        self._rings.append(state.slot, samples)

    def finish(self, stream: StreamId) -> None:
        state = self._streams.get(stream)
        if not state.finish_asked:
            state.finish_asked = True
            if self._rings.beside(state.slot):
                self._finishing[stream] = state
            else:
                self._table.finished[state.slot] = True

    def close(self, stream: StreamId) -> None:
        self._unsent = [output for output in self._unsent if output.stream != stream]
        self._forget(self._streams.get(stream))

    def samples_decoded(self, stream: StreamId) -> int:
        state = self._streams.get(stream)
        # A snapshot taken next covers what is under way: say so from now on.
        self._land_stream(state)
        if stream not in self._streams:
            return max(output.samples_decoded for output in self._unsent if output.stream == stream)
        return self.clock.samples_of_frames(int(self._table.decoded[state.slot]))

    def samples_waiting(self, stream: StreamId) -> int:
        state = self._streams.get(stream)
        planned = self.clock.samples_of_frames(int(self._table.planned[state.slot]))
        return max(0, int(self._table.fed[state.slot]) - planned) + self._rings.beside(state.slot)

    def snapshot(self, stream: StreamId) -> bytes:
        state = self._streams.get(stream)
        self._land_stream(state)
        slot = state.slot
        if stream not in self._streams or self._table.ended[slot]:
            raise EngineError(f"Stream {stream} has ended; its final output is all that is left.")
        if not self._table.decoded[slot]:
            raise EngineError(f"Stream {stream} has decoded nothing yet; there is no state to take.")
        self._reset_fresh()
        return self._snapshots.take(state, [output for output in self._unsent if output.stream == stream])

    def _forget(self, state: PipelinedStream) -> None:
        """Give back all that a stream holds.

        A step under way may still write to its slot and pages: whoever gets them next comes after it, on
        the device as well.
        """
        slot = state.slot
        self._streams.remove(state)
        self._by_slot[slot] = None
        self._finishing.pop(state.stream, None)
        self._listens[slot] = False
        if state.listens:
            self._turns.close(state.stream)
        self._table.close(slot)
        self._rings.close(slot)
        self._blocks.release(slot)
        self._held_pages[slot] = 0
        self._stats.open_streams = len(self._streams)

    # ------------------------------------------------------------------ steps

    def has_work(self) -> bool:
        return (
            self._launched is not None
            or bool(self._unsent)
            or bool(self._finishing)
            or self._turns.has_ready()
            or bool(self._table.ready(self._table.chunks_waiting()).any())
        )

    def wait_s(self) -> float | None:
        return self._turns.wait_s()

    @torch.inference_mode()
    def step(self) -> Sequence[StreamOutput]:
        outputs, self._unsent = self._unsent, []
        before, self._launched = self._launched, self._launch(outputs)
        if before is not None:
            self._read(before, outputs)
        self._drain_turns(outputs)
        self._note_gauges()
        return outputs

    def _note_gauges(self) -> None:
        now = time.monotonic()
        if self._launched is not None and now < self._gauges_due:
            return
        self._gauges_due = now + _GAUGES_EVERY_S
        stats, waiting = self._stats, self._table.chunks_waiting()
        stats.ready_streams = int(np.count_nonzero(self._table.ready(waiting)))
        stats.raw_chunks = int(waiting.sum())
        stats.turn_detection_depth = self._turns.num_held
        stats.turn_detection_streams = self._turns.num_waiting_streams

    def _drain_turns(self, outputs: list[StreamOutput]) -> None:
        for output in self._turns.drain():
            outputs.append(output)
            if output.is_final:
                self._forget(self._streams.get(output.stream))

    def _land_stream(self, state: PipelinedStream) -> None:
        """Read the step under way now when the stream is in it."""
        slot = state.slot
        if self._launched is not None and self._table.planned[slot] != self._table.decoded[slot]:
            launched, self._launched = self._launched, None
            self._read(launched, self._unsent)
            self._drain_turns(self._unsent)

    def _launch(self, outputs: list[StreamOutput]) -> _Launched | None:
        for stream, state in list(self._finishing.items()):
            if not self._rings.beside(state.slot):
                self._table.finished[state.slot] = True
                del self._finishing[stream]
        plan = self._table.plan(self.steps.max_rows)
        while plan is not None and not self._reserve(plan, outputs):
            self._table.unplan(plan)
            plan = self._table.plan(self.steps.max_rows)
        if plan is None:
            return None
        self._reset_fresh()
        slots = plan.slots_B
        rows = np.empty((len(Field), len(slots)), dtype=np.int32)
        rows[Field.SLOT] = slots
        rows[Field.START] = plan.start_B
        rows[Field.FRAMES] = plan.frames_B
        rows[Field.TOTAL] = np.where(plan.ends_B, self._table.fed[slots], UNKNOWN_END)
        rows[Field.HEARD] = self._heard(plan)
        self._stats.in_flight = len(slots)
        return _Launched(plan, self.steps.launch(rows, self._blocks.table[slots]))

    def _samples_before(self, frames: NDArray[np.int64]) -> NDArray[np.int64]:
        """`ChunkClock.samples_of_frames` of many."""
        clock = self.clock
        samples = clock.frame_samples * (frames - 1) + clock.lookahead_samples
        return np.where(frames > 0, samples, 0)

    def _heard(self, plan: Plan) -> NDArray[np.int64]:
        """New samples of each row for the speech detector; 0 where none listens."""
        end = np.where(
            plan.ends_B, self._table.fed[plan.slots_B], self._samples_before(plan.start_B + plan.frames_B)
        )
        return np.where(self._listens[plan.slots_B], end - self._samples_before(plan.start_B), 0)

    def _reset_fresh(self) -> None:
        """Give slots to their new streams, behind what runs on them now."""
        fresh, self._fresh = [slot for slot in self._fresh if self._by_slot[slot] is not None], []
        if not fresh:
            return
        self.steps.reset(sorted(set(fresh)))
        default = self.steps.state.default_prompt
        for slot in fresh:
            state = self._by_slot[slot]
            assert state is not None
            prompt = self._prompt_of(state.options)
            if prompt != default or self._prompts[slot] != default:
                self.steps.state.prompt_S[slot] = self._prompts[slot] = prompt

    def _grow(self, slot: int, end_frame: int) -> None:
        self._blocks.grow(slot, end_frame)
        self._held_pages[slot] = len(self._blocks.pages(slot))

    def _reserve(self, plan: Plan, outputs: list[StreamOutput]) -> bool:
        """Give every row its pages; when they run out, shed the newest stream and return False."""
        blocks = self._blocks
        wanted = np.minimum(blocks.ring_pages, -(-(plan.start_B + plan.frames_B) // blocks.page_frames))
        for row in np.flatnonzero(wanted > self._held_pages[plan.slots_B]):
            slot = int(plan.slots_B[row])
            try:
                self._grow(slot, int(plan.start_B[row] + plan.frames_B[row]))
            except OutOfPages as error:
                newest = max(self._streams, key=lambda state: state.order)
                decoded = self.clock.samples_of_frames(int(self._table.decoded[newest.slot]))
                outputs.append(failed_output(newest.stream, newest.transcript, decoded, error))
                self._forget(newest)
                return False
        return True

    # ------------------------------------------------------------------ results

    def _read(self, launched: _Launched, outputs: list[StreamOutput]) -> None:
        """Wait for a step and turn what it found into outputs; streams closed meanwhile have none."""
        plan, table, stats = launched.plan, self._table, self._stats
        found = self.steps.wait(launched.flight)
        slots, begin = plan.slots_B, self._samples_before(plan.start_B)
        end = self._samples_before(plan.start_B + plan.frames_B)
        alive = table.order[slots] == plan.order_B
        table.decoded[slots[alive]] = (plan.start_B + plan.frames_B)[alive]
        stats.steps += 1
        frames = int(plan.frames_B.sum())
        stats.pre_encode.units += len(slots)
        stats.encode.units += frames
        stats.decode.units += frames
        stats.tokens += int(found.num_symbols_B.sum())
        stats.turn_detection.units += int(found.num_windows_B.sum())
        acks = begin // ENGINE_SAMPLE_RATE < end // ENGINE_SAMPLE_RATE
        speaks = (found.num_symbols_B > 0) | plan.ends_B | acks | self._listens[slots]
        rows = np.flatnonzero(speaks & alive)
        self._results.read(plan, found, rows, begin, end, table.fed[slots], outputs)
        # Only now: a row's audio may be wanted for its turn.  Streams that ended meanwhile are gone.
        alive &= ~plan.ends_B
        self._rings.free(slots[alive], end[alive])

    def check_integrity(self) -> None:
        self._streams.check_integrity()
        self._blocks.check_integrity()
        table, ring = self._table, self._blocks.ring_pages * self._blocks.page_frames
        for slot in self._streams.free_slots:
            assert self._by_slot[slot] is None, f"the free slot {slot} has a stream"
            assert table.order[slot] == 0, f"the free slot {slot} is in the plan"
            assert not self._blocks.pages(slot), f"the free slot {slot} has pages"
            assert not self._rings.beside(slot), f"samples wait for the free slot {slot}"
        for state in self._streams:
            stream, slot = state.stream, state.slot
            assert self._by_slot[slot] is state, f"the slot of stream {stream} has another"
            assert table.order[slot] == state.order, f"stream {stream} is not in the plan"
            held = len(self._blocks.pages(slot))
            assert held == self._held_pages[slot], f"the pages of stream {stream} are miscounted"
            planned, decoded = int(table.planned[slot]), int(table.decoded[slot])
            assert held * self._blocks.page_frames >= min(planned, ring), f"stream {stream} lacks pages"
            assert self._launched is not None or planned == decoded, f"stream {stream} waits for no step"
            waits = int(table.fed[slot]) - int(self._rings.freed[slot])
            assert 0 <= waits <= self.steps.ring_SC.shape[1], f"the ring of stream {stream} overflows"
            assert self._listens[slot] == state.listens, f"stream {stream} listens or not"
