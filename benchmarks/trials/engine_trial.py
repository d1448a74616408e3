"""One trial of the C120 rule at engine level: N streams in real time against one engine, in one process.

Load: every stream is the bundled recordings, over and over from a seeded random offset, for the length of
the trial, from its own seeded random moment of the first ten seconds on.  Its audio is handed to the engine
chunk by chunk, at the moment when a chunk's last sample is there.

A chunk is late when the step that decodes it starts more than one chunk's duration after its last
sample was there; a step starts when it was launched and the one before it was over.  The trial passes
when at most 0.1 % of the chunks are late, the p95 time from a stream's last sample to its final result,
less a chunk's duration, is at most a second, and no stream is ever more than 3 s behind.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.corpora.speech import recordings, speech
from benchmarks.trials.clocks import Clock, RealClock
from benchmarks.trials.dropped_snapshots import DroppedSnapshots
from benchmarks.trials.phrase_load import NO_PHRASES, PhraseLists, PhraseLoad
from benchmarks.trials.simulated_steps import SimulatedSteps
from common.entries import StreamId
from common.options import StreamOptions
from common.process.garbage import collect_rarely
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import EngineError
from gpu_worker.engine.slots.clock import ChunkClock
from gpu_worker.engine.steps import Export, Field, Flight, KeptFrames, StepFindings, Steps
from gpu_worker.model.tokenizer import Tokenizer
from gpu_worker.pipeline.checkpoints import CheckpointQueue
from gpu_worker.worker import COLLECT_AFTER

SAMPLE_RATE = 16_000
ARRIVAL_S = 10.0
MAX_LATE_SHARE = 0.001
MAX_FINAL_MS = 1_000.0
MAX_BACKLOG_S = 3.0
# A trial that is this far behind has failed; it need not run to its end.
GIVE_UP_BACKLOG_S = 6.0
# How often the backlog is looked at, and what a loop without work sleeps: what they cost is the trial's, not
# the engine's.
_LOOK_EVERY_S: Final = 0.02
_IDLE_S: Final = 0.001
REAL: Final = RealClock()


@dataclass(frozen=True, slots=True)
class TrialResult:
    """The result of one trial; times in milliseconds.  `final_*_ms` are less a chunk's duration.

    `host_us_a_chunk` is the processor time of the engine's thread over the chunks decoded; it includes the
    trial's own work.  `engine_us_a_chunk` is that of the calls to the engine alone, what steps cost a thread
    included, but for what the trial notes of them and what simulated steps make up.

    `longest_turn_*` tell of the longest turn of the loop that feeds and steps: how long it took, when it
    began (seconds from the trial's start), how much of it was a wait for the device, and how much the thread
    really ran.  A long turn in which it hardly ran was the machine's doing.

    `lists_replaced` are lists of phrases that took another's place.  `failure` is why the first stream that
    failed did; empty where none did.
    """

    streams: int
    seconds: float
    passed: bool
    chunks: int
    late_share: float
    wait_p50_ms: float
    wait_p99_ms: float
    final_p50_ms: float
    final_p95_ms: float
    max_backlog_s: float
    steps: int
    rows_per_step: float
    step_p50_ms: float
    step_p99_ms: float
    device_busy: float
    host_busy: float
    host_us_a_chunk: float
    engine_us_a_chunk: float
    tokens_per_second: float
    finals: int
    longest_turn_ms: float
    longest_turn_at_s: float
    longest_turn_wait_ms: float
    longest_turn_cpu_ms: float
    snapshots: int
    snapshot_bytes: int
    lists_replaced: int
    failure: str

    def as_dict(self) -> dict[str, Any]:
        """Return the result for a line of JSON."""
        return asdict(self)


@dataclass(slots=True)
class _Turn:
    """One turn of the loop: the clocks at its start and, after its end, the time passed on each."""

    began_at: float = 0.0
    cpu_at: float = 0.0
    waited_at: float = 0.0
    seconds: float = 0.0
    cpu_s: float = 0.0
    waited_s: float = 0.0

    def end(self, now: float, cpu_s: float, waited_s: float) -> None:
        if self.began_at:
            self.seconds = now - self.began_at
            self.cpu_s, self.waited_s = cpu_s - self.cpu_at, waited_s - self.waited_at


class _Spent:
    """Processor time of this thread inside `with` blocks."""

    def __init__(self) -> None:
        self.seconds = self._began_s = 0.0

    def __enter__(self) -> None:
        self._began_s = time.thread_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.thread_time() - self._began_s


def _phrase_lists(
    engine: SpeechEngine, load: PhraseLoad, num_streams: int, seconds: float, seed: int
) -> PhraseLists:
    vocabulary = engine._vocabulary
    assert isinstance(vocabulary, Tokenizer), "phrases are made of a tokenizer's pieces"
    return PhraseLists(load, num_streams, seed, vocabulary, seconds)


class RecordingSteps:
    """Wraps steps and notes when each chunk's step started."""

    def __init__(
        self,
        steps: Steps,
        clock: ChunkClock,
        stream_of: NDArray[np.int64],
        now: Callable[[], float],
        *,
        shared: bool = False,
    ) -> None:
        self.inner = steps
        self._shared = shared
        self._stream_of, self._now = stream_of, now
        self.shape, self.stats = steps.shape, steps.stats
        self.rings, self.trees = steps.rings, steps.trees
        self._chunk_frames = clock.chunk_frames
        # Number of chunks of each slot's stream; a row does not have it.
        self._chunks_S = np.zeros(steps.shape.num_slots, dtype=np.int64)
        self._over_at = 0.0
        self._under_way: list[tuple[float, NDArray[np.int64]]] = []
        # Of each step: when it began, by what time its chunks are judged, when it was over, its whole-chunk
        # rows [stream, chunk].
        self.began: list[float] = []
        self.started: list[float] = []
        self.over: list[float] = []
        self.rows: list[NDArray[np.int64]] = []
        self.waited_s = 0.0
        self.noting = _Spent()

    def reset(self, slots: Sequence[int], prompts: Sequence[int]) -> None:
        self.inner.reset(slots, prompts)

    def export(self, slot: int, kept: KeptFrames | None) -> Export:
        return self.inner.export(slot, kept)

    def load(self, slot: int, kept: KeptFrames | None, state: Mapping[str, memoryview]) -> None:
        self.inner.load(slot, kept, state)

    def launch(self, rows_FB: NDArray[np.int32], table_BM: NDArray[np.int32]) -> Flight:
        with self.noting:
            slots = rows_FB[Field.SLOT, rows_FB[Field.FRAMES] == self._chunk_frames]
            chunks = np.stack([self._stream_of[slots], self._chunks_S[slots]])
            self._chunks_S[slots] += 1
            self._under_way.append((self._now(), chunks))
        return self.inner.launch(rows_FB, table_BM)

    def is_over(self, flight: Flight) -> bool:
        return self.inner.is_over(flight)

    def wait(self, flight: Flight) -> StepFindings:
        asked_at = self._now()
        findings = self.inner.wait(flight)
        with self.noting:
            launched_at, chunks = self._under_way.pop(0)
            self.began.append(max(launched_at, self._over_at))
            self._over_at = self._now()
            # When a step of others' rows too began, only its group knows: its end is what counts.
            self.started.append(self._over_at if self._shared else self.began[-1])
            self.waited_s += self._over_at - asked_at
            self.over.append(self._over_at)
            self.rows.append(chunks)
        return findings


def run_trial(
    engine: SpeechEngine,
    num_streams: int,
    seconds: float,
    *,
    arrival_s: float = ARRIVAL_S,
    replay_s: float = 0.0,
    seed: int = 0,
    time_of: Clock = REAL,
    phrases: PhraseLoad = NO_PHRASES,
    shared: bool = False,
) -> TrialResult:
    """Load the engine; it is fresh and has a slot for every stream.

    `shared`: its steps have rows of other engines too.  A chunk is then late by the end of its step.
    `time_of` is the trial's time.  With `replay_s`, snapshots are taken as a worker with that
    --replay-seconds takes them, and dropped.
    """
    lists = _phrase_lists(engine, phrases, num_streams, arrival_s + seconds, seed)
    load = _Load(engine, num_streams, seconds, arrival_s, seed)
    trial = _Trial(engine, load, lists, replay_s, time_of, shared=shared)
    thresholds = gc.get_threshold()
    collect_rarely(*COLLECT_AFTER)
    trial.run()
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    return trial.result(seconds)


class _Load:
    """The audio of a trial's streams.

    arrival: when each stream begins, in seconds.   first, chunk: samples of its first piece, of each other.
    num_pieces, length: pieces and samples of each stream.
    """

    def __init__(
        self, engine: SpeechEngine, num_streams: int, seconds: float, arrival_s: float, seed: int
    ) -> None:
        clock, rng = engine.clock, np.random.default_rng(seed)
        self.num_streams = num_streams
        self.arrival = np.sort(rng.uniform(0.0, arrival_s, num_streams))
        self.first, self.chunk = clock.samples_of_chunks(1), clock.chunk_samples
        self.num_pieces = max(1, int((seconds * SAMPLE_RATE - self.first) // self.chunk) + 1)
        self.length = self.first + (self.num_pieces - 1) * self.chunk
        # The recordings repeat: a stream that reaches their end continues at their start.
        self._lap = len(recordings())
        # pcm16, as from clients and workers.
        self._pool = np.round(32_768 * speech(0, self._lap + self.chunk)).astype(np.int16)
        self._offset = rng.integers(0, self._lap, num_streams).tolist()

    def due(self, passed: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return how many pieces of each stream are there, so many seconds after its begin."""
        pieces = (passed * SAMPLE_RATE - self.first) // self.chunk + 1
        return np.clip(pieces, 0, self.num_pieces).astype(np.int64)

    def piece(self, stream: int, number: int) -> NDArray[np.int16]:
        """Return the samples of a piece."""
        start = (self._offset[stream] + number * self.chunk) % self._lap
        return self._pool[start : start + (self.chunk if number else self.first)]


class _Trial:
    """One trial: it opens and feeds streams in real time, steps the engine, and notes what that took."""

    def __init__(
        self,
        engine: SpeechEngine,
        load: _Load,
        lists: PhraseLists,
        replay_s: float,
        time_of: Clock,
        *,
        shared: bool,
    ) -> None:
        num_streams = load.num_streams
        self._engine, self._load, self._lists, self._time_of = engine, load, lists, time_of
        self._stream_of = np.full(engine.capacity, -1, dtype=np.int64)
        self._steps = RecordingSteps(engine.steps, engine.clock, self._stream_of, time_of.now, shared=shared)
        engine.steps = self._steps
        self._names = [StreamId(number + 1) for number in range(num_streams)]
        self._opened = 0
        self._given = np.zeros(num_streams, dtype=np.int64)  # pieces of each stream
        self._slot_of = np.full(num_streams, -1, dtype=np.int64)
        self._final_at = np.full(num_streams, np.nan)
        self._takes_snapshots = bool(replay_s)
        self._checkpoints = CheckpointQueue(replay_s, time_of.now)
        self._snapshots = DroppedSnapshots()
        self._max_backlog_s, self._look_at = 0.0, 0.0
        self._gave_up, self._failure = False, ""
        self._num_replaced = 0
        self._tokens_before = engine.stats.tokens
        self._idle_s = self._wall_s = self._thread_s = 0.0
        self._longest, self._in_engine = _Turn(), _Spent()
        self._origin = 0.0

    def run(self) -> None:
        """Run until each stream has had its final result, or the trial has failed."""
        steps, time_of, turn = self._steps, self._time_of, _Turn()
        self._origin, thread_began_s = time_of.now(), time.thread_time()
        while not self._gave_up:
            now, cpu_s = time_of.now(), time.thread_time()
            turn.end(now, cpu_s, steps.waited_s)
            self._longest = max(self._longest, turn, key=lambda one: one.seconds)
            turn = _Turn(now, cpu_s, steps.waited_s)
            passed = now - self._origin - self._load.arrival
            self._open(passed)
            self._replace_phrases(now)
            self._feed(passed)
            if self._opened and now >= self._look_at:
                self._look_at = now + _LOOK_EVERY_S
                self._look_at_backlog(passed)
            if self._step():
                continue
            if not np.isnan(self._final_at).any():
                break
            self._idle_s += _IDLE_S
            time_of.sleep(_IDLE_S)
        self._wall_s, self._thread_s = time_of.now() - self._origin, time.thread_time() - thread_began_s
        self._snapshots.stop()

    def _open(self, passed: NDArray[np.float64]) -> None:
        while self._opened < len(self._names) and passed[self._opened] >= 0:
            number, name = self._opened, self._names[self._opened]
            options = StreamOptions(phrases=self._lists.of(number))
            with self._in_engine:
                self._engine.open(name, options)
            self._checkpoints.opened(name, 0)
            slot = self._engine._streams.get(name).slot
            self._slot_of[number], self._stream_of[slot] = slot, number
            self._opened += 1

    def _replace_phrases(self, now: float) -> None:
        load = self._load
        for _ in range(self._lists.changes(now - self._origin)):
            change = self._lists.change(self._opened)
            if change is None or self._given[change[0]] >= load.num_pieces:
                continue
            number, phrases = change
            if np.isnan(self._final_at[number]):
                heard_now = load.first + max(0, int(self._given[number]) - 1) * load.chunk
                with self._in_engine:
                    self._engine.replace_phrases(self._names[number], phrases, heard_now)
                self._num_replaced += 1

    def _feed(self, passed: NDArray[np.float64]) -> None:
        due = self._load.due(passed)
        newly = np.flatnonzero(due > self._given)
        parts, over = [], []
        for number, was, until in zip(
            newly.tolist(), self._given[newly].tolist(), due[newly].tolist(), strict=True
        ):
            name = self._names[number]
            parts += [(name, self._load.piece(number, piece)) for piece in range(was, until)]
            if until == self._load.num_pieces:
                over.append(name)
        with self._in_engine:
            for name, samples in parts:
                self._engine.feed(name, samples)
            for name in over:
                self._engine.finish(name)
        self._given[newly] = due[newly]

    def _look_at_backlog(self, passed: NDArray[np.float64]) -> None:
        opened = self._opened
        live = np.isnan(self._final_at[:opened])
        heard = np.minimum(passed[:opened] * SAMPLE_RATE, self._load.length)
        decoded = self._engine.clock.frame_samples * self._engine._table.decoded[self._slot_of[:opened]]
        behind_s = float(np.where(live, heard - decoded, 0.0).max()) / SAMPLE_RATE
        self._max_backlog_s = max(self._max_backlog_s, behind_s)
        self._gave_up = behind_s > GIVE_UP_BACKLOG_S

    def _step(self) -> bool:
        """Step the engine, and take its outputs; return False if it had no work."""
        with self._in_engine:
            if not self._engine.has_work():
                return False
            outputs = self._engine.step()
        for output in outputs:
            if output.failed is not None:
                self._gave_up, self._failure = True, self._failure or str(output.failed)
            if output.is_final:
                self._final_at[output.stream - 1] = self._time_of.now()
                self._checkpoints.drop(output.stream)
            else:
                self._checkpoints.decoded(output.stream, output.samples_decoded)
        if self._takes_snapshots:
            self._take_snapshots()
        return True

    def _take_snapshots(self) -> None:
        for name in self._checkpoints.next_ones(self._engine.is_under_way):
            if not self._snapshots.has_room():
                break
            try:
                with self._in_engine:
                    taken = self._engine.snapshot(name)
            except EngineError:
                # Its end came with the running step, which can happen in a worker, too.
                self._checkpoints.drop(name)
                continue
            self._checkpoints.taken(name, taken.samples_decoded)
            self._snapshots.put(taken)

    def result(self, seconds: float) -> TrialResult:
        """Return the figures. seconds: length of each stream."""
        steps, load, stats, longest = self._steps, self._load, self._engine.stats, self._longest
        made_up_s = steps.inner.made_up_s if isinstance(steps.inner, SimulatedSteps) else 0.0
        engine_s = self._in_engine.seconds - steps.noting.seconds - made_up_s
        busy_s = stats.pre_encode.busy_s + stats.encode.busy_s + stats.decode.busy_s
        wait_s, chunk_s = self._waits_s(), load.chunk / SAMPLE_RATE
        late = float((wait_s > chunk_s).mean())
        last_sample = self._origin + load.arrival + load.length / SAMPLE_RATE
        final_p50, final_p95 = _percentiles(1000 * (self._final_at - last_sample - chunk_s), 50, 95)
        # A trial whose streams all fail at once has no step.
        step_p50, step_p99 = _percentiles(1000 * (np.array(steps.over) - np.array(steps.began)), 50, 99)
        return TrialResult(
            streams=load.num_streams,
            seconds=seconds,
            passed=not self._gave_up
            and late <= MAX_LATE_SHARE
            and final_p95 <= MAX_FINAL_MS
            and self._max_backlog_s <= MAX_BACKLOG_S,
            chunks=len(wait_s),
            late_share=late,
            wait_p50_ms=1000 * float(np.percentile(wait_s, 50)),
            wait_p99_ms=1000 * float(np.percentile(wait_s, 99)),
            final_p50_ms=final_p50,
            final_p95_ms=final_p95,
            max_backlog_s=self._max_backlog_s,
            steps=len(steps.over),
            rows_per_step=sum(rows.shape[1] for rows in steps.rows) / max(1, len(steps.over)),
            step_p50_ms=step_p50,
            step_p99_ms=step_p99,
            device_busy=busy_s / self._wall_s,
            host_busy=1.0 - (self._idle_s + steps.waited_s) / self._wall_s,
            host_us_a_chunk=1e6 * self._thread_s / max(1, len(wait_s)),
            engine_us_a_chunk=1e6 * engine_s / max(1, len(wait_s)),
            tokens_per_second=(stats.tokens - self._tokens_before)
            / (load.num_streams * load.length / SAMPLE_RATE),
            finals=int((~np.isnan(self._final_at)).sum()),
            longest_turn_ms=1000 * longest.seconds,
            longest_turn_at_s=longest.began_at - self._origin,
            longest_turn_wait_ms=1000 * longest.waited_s,
            longest_turn_cpu_ms=1000 * longest.cpu_s,
            snapshots=self._snapshots.taken,
            snapshot_bytes=self._snapshots.num_bytes,
            lists_replaced=self._num_replaced,
            failure=self._failure,
        )

    def _waits_s(self) -> NDArray[np.float64]:
        """Return the seconds from each chunk's last sample to the start of its step."""
        load, waits = self._load, []
        for started, (streams, chunks) in zip(self._steps.started, self._steps.rows, strict=True):
            there = self._origin + load.arrival[streams] + (load.first + chunks * load.chunk) / SAMPLE_RATE
            waits.append(started - there)
        return np.concatenate(waits) if waits else np.zeros(1)


def _percentiles(values: NDArray[np.float64], *percents: float) -> tuple[float, ...]:
    """Return percentiles; infinity where there is no value, or one is missing."""
    if not len(values) or np.isnan(values).any():
        return (np.inf,) * len(percents)
    return tuple(float(value) for value in np.percentile(values, percents))
