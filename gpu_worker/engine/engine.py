"""The engine: slots, pages and audio for streams, and `step` = schedule, launch, read.

Central invariant: the outputs of a stream are a function of its samples and options alone. They do not depend
on the number of chunks in a step, nor on the other streams in it.

There is one engine for every device and model, which are behind `Steps`. Slots are rows of arrays, samples
are written straight to the memory from which steps read them, and only streams with new output cost Python
time. If a device works beside the host, `step` launches the next step and then reads the one before it, so
that the device never waits for the host; otherwise it reads the step that it has just run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from common.entries import StreamId
from common.options import StreamOptions
from common.process.pace import Pace
from gpu_worker.engine.interface import (
    ENGINE_SAMPLE_RATE,
    EngineError,
    EngineStats,
    OutOfPages,
    SnapshotMismatch,
    StreamFinished,
    StreamOutput,
    StreamSnapshot,
)
from gpu_worker.engine.phrases.book import PhraseBook, PhraseList, no_trees
from gpu_worker.engine.phrases.changes import StreamPhrases
from gpu_worker.engine.results import Outputs, failed_output
from gpu_worker.engine.slot_snapshots import SlotSnapshots
from gpu_worker.engine.slots.block_manager import BlockManager
from gpu_worker.engine.slots.live_gaps import LiveGaps
from gpu_worker.engine.slots.positions import FoldedFrames
from gpu_worker.engine.slots.sample_rings import SampleRings
from gpu_worker.engine.slots.samples import FLOAT32, MAX_SAMPLE, PCM16, Samples, float_samples
from gpu_worker.engine.slots.slot_table import Plan, SlotTable
from gpu_worker.engine.steps import UNKNOWN_END, WINDOW_SAMPLES, Field, Flight, Steps
from gpu_worker.engine.stream import OpenStreams, Stream
from gpu_worker.engine.transcript import Transcript, Vocabulary
from gpu_worker.engine.warm_up import WarmUps
from gpu_worker.turn.settings import TurnSettings
from gpu_worker.turn.stage import TurnJudge, TurnStage

# Gauges are counted over all slots, for a status line that is read once a second: not after every step.
_GAUGES_EVERY_S = 0.05
# Time between two checks of a step that runs on the device.
_POLL_S = 0.001


@dataclass(frozen=True, slots=True)
class _Launched:
    """A launched step: its plan, its flight, and its begin if it has only recordings."""

    plan: Plan
    flight: Flight
    alone_at_s: float | None


class SpeechEngine:
    """The engine: streams of samples in, outputs out (see the module).

    Args:
        steps: runs steps and keeps the model's state of slots.
        vocabulary: vocabulary of the model.
        turns_of: returns the turn detection settings of a stream's options; used where the steps hear.
        prompt_of: returns the index of a stream's language prompt; raises UnsupportedOption.
        book: builds boosting trees of phrases, where the engine has them.
        common: phrases of all streams.
        judge: smart-turn, where it runs.
        pace: says when steps begin; only where steps overlap, since others gather rows while they run.
    """

    def __init__(
        self,
        steps: Steps,
        vocabulary: Vocabulary,
        *,
        turns_of: Callable[[StreamOptions], TurnSettings] = lambda _: TurnSettings(),
        prompt_of: Callable[[StreamOptions], int] = lambda _: 0,
        judge: TurnJudge | None = None,
        book: PhraseBook | None = None,
        common: PhraseList = (),
        pace: Pace | None = None,
    ) -> None:
        shape, pages = steps.shape, steps.shape.pages
        num_slots = shape.num_slots
        self.clock = shape.clock
        self.steps = steps
        self._stats = steps.stats
        self._vocabulary = vocabulary
        self._turns_of = turns_of
        self._prompt_of = prompt_of
        self._frame_s = shape.clock.frame_samples / ENGINE_SAMPLE_RATE
        self._blocks = BlockManager(pages.num_pages, pages.page_frames, pages.ring_pages, num_slots)
        self._table = SlotTable(num_slots, shape.clock)
        self._rings = SampleRings(steps.rings, self._table)
        self._folded = FoldedFrames(
            shape.clock,
            ring_frames=pages.ring_frames,
            ring_samples=steps.rings.num_samples,
            window_samples=WINDOW_SAMPLES,
            limit_samples=UNKNOWN_END,
        )
        self._turns = TurnStage(judge, eou_id=vocabulary.eou_id, num_slots=num_slots)
        self._warm_ups = WarmUps(num_slots)
        self._snapshots = SlotSnapshots(
            steps, self._table, self._rings, self._blocks, self._turns, self._warm_ups
        )
        self._streams = OpenStreams(num_slots)
        self._outputs = Outputs(
            self._streams, self._table, self._rings, self._turns, self._warm_ups, self._stats
        )
        self.book = book or PhraseBook(steps.trees, no_trees)
        self._phrases = StreamPhrases(steps.trees, self._table, self._warm_ups, self.book, common)
        # Slots of the streams for which more samples may come.
        self._fed_slots: dict[StreamId, int] = {}
        # Streams whose slots are reset before their first step, by slot: others may take these before a step.
        self._fresh: dict[int, Stream] = {}
        self._finishing: dict[StreamId, Stream] = {}
        self._num_opened = 0
        self._listens = np.zeros(num_slots, dtype=np.bool_)
        self._launched: _Launched | None = None
        self._pace = pace or Pace(0.0)
        self._gaps = LiveGaps(num_slots, shape.clock.chunk_samples / ENGINE_SAMPLE_RATE)
        # Outputs that were read before `step` could return them.
        self._unsent: list[StreamOutput] = []
        self._gauges_due = 0.0

    # ------------------------------------------------------------------ streams

    @property
    def capacity(self) -> int:
        return self._streams.capacity

    @property
    def stats(self) -> EngineStats:
        return self._stats

    def open(self, stream: StreamId, options: StreamOptions, snapshot: bytes | None = None) -> None:
        slot = self._streams.vacant_slot(stream)
        prompt = self._prompt_of(options)
        restored = self._snapshots.read(snapshot) if snapshot is not None else None
        phrases, anew = options.phrases, True
        if restored is not None:
            phrases, anew = self._snapshots.phrases(restored)
        settings = self._turns_of(options)
        if not self.steps.shape.hears:
            settings = TurnSettings(enabled=False)
        self._num_opened += 1
        transcript = Transcript(
            self._vocabulary, self._frame_s, with_words=options.words, with_starts=settings.auto_finalize
        )
        state = Stream(stream, slot, self._num_opened, options, prompt, transcript, settings.enabled)
        self._streams.add(state)
        self._fed_slots[stream] = slot
        try:
            if restored is None:
                self._table.open(slot, state.order, 0, 0, recording=options.recording)
                self._rings.open(slot, 0)
                if state.listens:
                    self._turns.open(stream, settings, transcript, slot=slot)
            else:
                self._unsent += self._snapshots.restore(state, settings, restored)
            self._phrases.begin(state, phrases, self._frames_of(slot), anew=anew)
        except BaseException:
            self._drop(state)
            raise
        self._listens[slot] = state.listens and slot not in self._warm_ups
        if not self._table.decoded[slot]:
            self._fresh[slot] = state
        self._stats.open_streams = len(self._streams)

    def feed(self, stream: StreamId, samples: Samples) -> None:
        slot = self._fed_slots.get(stream)
        if slot is None:
            self._streams.get(stream)
            raise StreamFinished(f"Stream {stream} was finished; no samples can follow.")
        if samples.dtype is PCM16 and samples.ndim == 1:
            # pcm16 is always finite and never too loud.
            self._rings.append_pcm16(slot, samples)  # type: ignore[arg-type]
            return
        # One pass checks both; vdot does not warn, unlike dot.
        wrong = samples.dtype != FLOAT32 or samples.ndim != 1
        if wrong or not np.vdot(samples, samples) < MAX_SAMPLE:
            samples = np.clip(float_samples(samples), -MAX_SAMPLE, MAX_SAMPLE)
        self._rings.append(slot, samples)

    def replace_phrases(self, stream: StreamId, phrases: PhraseList, sample: int) -> None:
        self._phrases.replace(self._streams.get(stream), phrases, sample)

    def phrases(self, stream: StreamId) -> PhraseList:
        return self._phrases.told(self._streams.get(stream).stream)

    def finish(self, stream: StreamId) -> None:
        state = self._streams.get(stream)
        slot = self._fed_slots.get(stream)
        if slot is not None:
            warm_up = self._warm_ups.get(slot)
            if warm_up is not None and self._table.fed[slot] + self._rings.beside(slot) < warm_up.samples:
                raise EngineError(f"Stream {stream} ends before the snapshot that it was opened with.")
            del self._fed_slots[stream]
            if self._must_wait(slot):
                self._finishing[stream] = state
            else:
                self._table.finish(slot)

    def _must_wait(self, slot: int) -> bool:
        """Return whether samples of the slot's stream wait beside its ring, or may not be taken yet."""
        return bool(self._rings.beside(slot)) or slot in self._warm_ups

    def close(self, stream: StreamId) -> None:
        self._unsent = [output for output in self._unsent if output.stream != stream]
        self._drop(self._streams.get(stream))

    def streams_in(self, slots: Collection[int]) -> set[StreamId]:
        """Return the streams of slots. For any thread, which may see a stream that has just come or gone."""
        return {state.stream for state in map(self._streams.by_slot.__getitem__, slots) if state is not None}

    def samples_decoded(self, stream: StreamId) -> int:
        state = self._streams.get(stream)
        # A snapshot taken next covers the running step, so its samples count from now on.
        self._land_stream(state)
        if stream not in self._streams:
            return max(output.samples_decoded for output in self._unsent if output.stream == stream)
        return self._decoded(state)

    def is_under_way(self, stream: StreamId) -> bool:
        if stream not in self._streams:
            return False
        slot = self._streams.get(stream).slot
        return bool(self._table.planned[slot] != self._table.decoded[slot]) or slot in self._warm_ups

    def snapshot(self, stream: StreamId, *, whole: bool = False) -> StreamSnapshot:
        state = self._streams.get(stream)
        self._land_stream(state)
        if state.slot in self._warm_ups:
            raise EngineError(f"Stream {stream} has not reached the snapshot that it was opened with.")
        if stream not in self._streams or self._table.ended[state.slot]:
            raise EngineError(f"Stream {stream} has ended; its final output is all that is left.")
        unsent = [output for output in self._unsent if output.stream == stream]
        return self._snapshots.take(state, unsent, *self._phrases.at_snapshot(stream), whole=whole)

    def _decoded(self, state: Stream) -> int:
        return self.clock.samples_of_frames(self._frames_of(state.slot))

    def _frames_of(self, slot: int) -> int:
        """Return how many encoder frames the outputs of a slot's stream, or its snapshot, cover."""
        warm_up = self._warm_ups.get(slot)
        return int(self._table.decoded[slot]) if warm_up is None else warm_up.frames

    def _drop(self, state: Stream) -> None:
        """Release all that a stream holds.

        A running step may still write to its slot and pages: their next owner comes after that step, on the
        device as well.
        """
        slot = state.slot
        self._phrases.drop(state)
        self._streams.remove(state)
        self._fed_slots.pop(state.stream, None)
        self._finishing.pop(state.stream, None)
        self._listens[slot] = False
        self._warm_ups.drop(slot)
        self._gaps.drop(slot)
        if state.listens:
            self._turns.close(state.stream)
        self._table.close(slot)
        self._rings.close(slot)
        self._blocks.release(slot)
        self._stats.open_streams = len(self._streams)

    # ------------------------------------------------------------------ steps

    def has_work(self) -> bool:
        if (
            self._unsent
            or self._turns.has_ready()
            # A verdict may change no result, and its stream goes on all the same.
            or len(self._turns.waiting) != self._table.num_held
        ):
            return True
        launched, paced_s = self._launched, self._pace.wait_s()
        if launched is not None and (not self._pace.interval_s or self.steps.is_over(launched.flight)):
            return True
        return not paced_s and self._could_launch()

    def _could_launch(self) -> bool:
        ready = self._table.ready()
        if len(ready) and not (self._table.only_recordings(ready) and self._gaps.wait_s()):
            return True
        return self._phrases.has_due() or any(
            not self._must_wait(state.slot) for state in self._finishing.values()
        )

    def is_stepping(self) -> bool:
        return self._launched is not None

    def wait_s(self) -> float | None:
        told = (self._turns.wait_s(), self._paced_wait_s(), self._gap_wait_s())
        return min((wait_s for wait_s in told if wait_s is not None), default=None)

    def _gap_wait_s(self) -> float | None:
        """Return the seconds until recordings that wait for live streams may go on, or None."""
        if not self._table.num_recordings:
            return None
        return self._gaps.wait_s() or None

    def _paced_wait_s(self) -> float | None:
        if self._launched is not None:
            return _POLL_S
        paced_s = self._pace.wait_s()
        return paced_s if paced_s and self._could_launch() else None

    def step(self) -> Sequence[StreamOutput]:
        outputs, self._unsent = self._unsent, []
        if self._turns.holds_results:
            # A launch may end their stream, and these come before that.
            self._drain_turns(outputs)
        to_read, self._launched = self._launched, None
        if not self._pace.wait_s():
            self._launched = self._launch(outputs)
        if not self.steps.shape.overlaps:
            to_read, self._launched = self._launched, None
        if to_read is not None:
            self._read(to_read, outputs)
        self._drain_turns(outputs)
        self._note_gauges()
        return outputs

    def _note_gauges(self) -> None:
        now = time.monotonic()
        if self._launched is not None and now < self._gauges_due:
            return
        self._gauges_due = now + _GAUGES_EVERY_S
        stats = self._stats
        stats.ready_streams = len(self._table.ready())
        stats.waiting_chunks = self._table.num_chunks_waiting()
        stats.turn_detection_depth = self._turns.num_held
        stats.turn_detection_streams = len(self._turns.waiting)

    def _drain_turns(self, outputs: list[StreamOutput]) -> None:
        outputs += self._turns.drain()
        for stream in self._turns.take_ended():
            self._drop(self._streams.get(stream))
        self._table.hold([self._streams.get(stream).slot for stream in self._turns.waiting])

    def _land_stream(self, state: Stream) -> None:
        """Read the running step now if the stream is in it."""
        slot = state.slot
        if self._launched is not None and self._table.planned[slot] != self._table.decoded[slot]:
            launched, self._launched = self._launched, None
            self._read(launched, self._unsent)
            self._drain_turns(self._unsent)

    def _launch(self, outputs: list[StreamOutput]) -> _Launched | None:
        for stream, state in list(self._finishing.items()):
            if not self._must_wait(state.slot):
                self._table.finish(state.slot)
                del self._finishing[stream]
        for state, error in self._phrases.come_into_force():
            outputs.append(failed_output(state, self._decoded(state), error))
            self._drop(state)
        plan = self._plan(outputs)
        if plan is None:
            return None
        self._pace.begun()
        self._reset_fresh()
        slots = plan.slots_B
        rows = np.zeros((len(Field), len(slots)), dtype=np.int32)
        start = self._folded.fold(plan.start_B)
        rows[Field.SLOT] = slots
        rows[Field.START] = start
        rows[Field.FRAMES] = plan.frames_B
        rows[Field.TOTAL] = UNKNOWN_END
        if not plan.one_each:
            end = self._table.fed[slots] - self.clock.frame_samples * (plan.start_B - start)
            np.copyto(rows[Field.TOTAL], end, where=plan.ends_B, casting="same_kind")
        if self.steps.shape.hears:
            rows[Field.HEARD] = self._table.new_samples(plan) * self._listens[slots]
        rows[Field.FLOAT] = self._rings.is_float[slots]
        alone_at_s = None
        if self._table.num_recordings:
            live = ~self._table.recording[slots]
            self._gaps.came(slots[live])
            alone_at_s = None if live.any() else self._gaps.clock()
        self._stats.in_flight = len(slots)
        self._stats.late_chunks = self._table.num_late
        return _Launched(plan, self.steps.launch(rows, self._blocks.table[slots]), alone_at_s)

    def _reset_fresh(self) -> None:
        """Reset slots for their new streams, after the steps that were launched before."""
        by_slot = self._streams.by_slot
        fresh = [state for slot, state in self._fresh.items() if by_slot[slot] is state]
        self._fresh.clear()
        if fresh:
            self.steps.reset([state.slot for state in fresh], [state.prompt for state in fresh])

    # ------------------------------------------------------------------ pages

    def _plan(self, outputs: list[StreamOutput]) -> Plan | None:
        """Plan a step whose rows all have their pages; sheds the newest streams when pages run out."""
        shape = self.steps.shape
        while True:
            plan = self._table.plan(
                shape.max_rows,
                shape.max_chunks,
                self._gaps.recording_rows(self._table, shape),
                in_gap=not (self._table.num_recordings and self._gaps.wait_s()),
            )
            if plan is None or self._reserve(plan, outputs):
                return plan
            self._table.unplan(plan)

    def _reserve(self, plan: Plan, outputs: list[StreamOutput]) -> bool:
        """Give every row its pages; when they run out, shed the newest stream and return False.

        Only a stream that has pages, or wants one, is shed: no other would make room.
        """
        blocks, slots = self._blocks, plan.slots_B
        if not blocks.ring_pages:
            return True
        missing = blocks.missing(slots, plan.start_B + plan.frames_B)
        try:
            blocks.allocate(slots, missing)
        except OutOfPages as error:
            wants = blocks.held > 0
            wants[slots[missing > 0]] = True
            newest = self._streams.by_slot[int(np.argmax(np.where(wants, self._table.order, 0)))]
            assert newest is not None
            outputs.append(failed_output(newest, self._decoded(newest), error))
            self._drop(newest)
            return False
        return True

    # ------------------------------------------------------------------ results

    def _read(self, launched: _Launched, outputs: list[StreamOutput]) -> None:
        """Wait for a step and turn its findings into outputs; streams closed meanwhile have none."""
        plan, table, stats = launched.plan, self._table, self._stats
        found = self.steps.wait(launched.flight)
        self._gaps.ended()
        if launched.alone_at_s is not None:
            self._gaps.took(self._gaps.clock() - launched.alone_at_s)
        frames = int(plan.frames_B.sum())
        stats.steps += 1
        stats.encode.units += frames
        stats.decode.units += frames
        is_open = table.order[plan.slots_B] == plan.order_B
        if not is_open.all():
            plan, found = plan.of(is_open), found.of(is_open)
        slots, end = plan.slots_B, plan.start_B + plan.frames_B
        table.decoded[slots] = end
        for state in self._outputs.add(plan, found, self._listens[slots], outputs):
            self._drop(state)
        # Only now: turn detection may need a row's audio. Streams that ended meanwhile are gone.
        if not plan.one_each:
            slots, end = slots[~plan.ends_B], end[~plan.ends_B]
        self._rings.free(slots, self.clock.samples_of_frame_array(end))
        if self._warm_ups:
            self._complete_warm_ups(outputs)

    def _complete_warm_ups(self, outputs: list[StreamOutput]) -> None:
        for warm_up in self._warm_ups.reached(self._table.decoded):
            state = warm_up.state
            try:
                outputs += self._snapshots.complete(warm_up)
            except SnapshotMismatch as error:
                outputs.append(failed_output(state, warm_up.samples, error))
                self._drop(state)
            else:
                self._listens[state.slot] = state.listens

    def check_integrity(self) -> None:
        self._streams.check_integrity()
        self._blocks.check_integrity()
        self._phrases.check_integrity()
        table = self._table
        ring = self._blocks.ring_pages * self._blocks.page_frames
        for slot in self._streams.free_slots:
            assert table.order[slot] == 0, f"the free slot {slot} is in the plan"
            assert not self._blocks.pages(slot), f"the free slot {slot} has pages"
            assert not self._rings.beside(slot), f"samples wait for the free slot {slot}"
        for state in self._streams:
            stream, slot = state.stream, state.slot
            assert table.order[slot] == state.order, f"stream {stream} is not in the plan"
            held = int(self._blocks.held[slot])
            planned, decoded = int(table.planned[slot]), int(table.decoded[slot])
            assert held * self._blocks.page_frames >= min(planned, ring), f"stream {stream} lacks pages"
            assert self._launched is not None or planned == decoded, f"stream {stream} waits for no step"
            waits = int(table.fed[slot]) - int(self._rings.freed[slot])
            assert 0 <= waits <= self.steps.rings.num_samples, f"the ring of stream {stream} overflows"
            listens = state.listens and slot not in self._warm_ups
            assert self._listens[slot] == listens, f"stream {stream} listens or not"
