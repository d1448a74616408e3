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
    clock = engine.clock
    stream_of = np.full(engine.capacity, -1, dtype=np.int64)
    steps = RecordingSteps(engine.steps, clock, stream_of, time_of.now, shared=shared)
    engine.steps = steps
    rng = np.random.default_rng(seed)
    arrival = np.sort(rng.uniform(0.0, arrival_s, num_streams))
    first, chunk = clock.samples_of_chunks(1), clock.chunk_samples
    num_pieces = max(1, int((seconds * SAMPLE_RATE - first) // chunk) + 1)
    length = first + (num_pieces - 1) * chunk
    # The recordings repeat: a stream that reaches their end continues at their start.
    lap = len(recordings())
    # pcm16, as from clients and workers.
    pool = np.round(32_768 * speech(0, lap + chunk)).astype(np.int16)
    offset = rng.integers(0, lap, num_streams).tolist()
    names = [StreamId(number + 1) for number in range(num_streams)]
    given = np.zeros(num_streams, dtype=np.int64)
    slot_of = np.full(num_streams, -1, dtype=np.int64)
    final_at = np.full(num_streams, np.nan)
    lists = _phrase_lists(engine, phrases, num_streams, arrival_s + seconds, seed)
    table = engine._table
    thresholds = gc.get_threshold()
    collect_rarely(*COLLECT_AFTER)
    max_backlog, look_at, opened, gave_up, failure = 0.0, 0.0, 0, False, ""
    tokens_before, idle_s, replaced_lists = engine.stats.tokens, 0.0, 0
    checkpoints, snapshots = CheckpointQueue(replay_s, time_of.now), DroppedSnapshots()
    turn, longest, in_engine = _Turn(), _Turn(), _Spent()
    origin, thread_began_s = time_of.now(), time.thread_time()
    while not gave_up:
        now, cpu_s = time_of.now(), time.thread_time()
        turn.end(now, cpu_s, steps.waited_s)
        longest = max(longest, turn, key=lambda one: one.seconds)
        turn = _Turn(now, cpu_s, steps.waited_s)
        passed = now - origin - arrival
        while opened < num_streams and passed[opened] >= 0:
            options = StreamOptions(phrases=lists.of(opened))
            with in_engine:
                engine.open(names[opened], options)
            checkpoints.opened(names[opened], 0)
            state = engine._streams.get(names[opened])
            slot_of[opened], stream_of[state.slot] = state.slot, opened
            opened += 1
        for _ in range(lists.changes(now - origin)):
            change = lists.change(opened)
            if change is not None and np.isnan(final_at[change[0]]) and given[change[0]] < num_pieces:
                replaced, others = change
                heard_now = first + max(0, int(given[replaced]) - 1) * chunk
                with in_engine:
                    engine.replace_phrases(names[replaced], others, heard_now)
                replaced_lists += 1
        due = np.clip((passed * SAMPLE_RATE - first) // chunk + 1, 0, num_pieces).astype(np.int64)
        newly = np.flatnonzero(due > given)
        parts, over = [], []
        for index, was, until in zip(newly.tolist(), given[newly].tolist(), due[newly].tolist(), strict=True):
            name, at = names[index], offset[index]
            for piece in range(was, until):
                start = (at + piece * chunk) % lap
                parts.append((name, pool[start : start + (chunk if piece else first)]))
            if until == num_pieces:
                over.append(name)
        with in_engine:
            for name, samples in parts:
                engine.feed(name, samples)
            for name in over:
                engine.finish(name)
        given[newly] = due[newly]
        if opened and now >= look_at:
            look_at = now + _LOOK_EVERY_S
            live = np.isnan(final_at[:opened])
            heard = np.minimum(passed[:opened] * SAMPLE_RATE, length)
            frames = table.decoded[slot_of[:opened]]
            behind = np.where(live, heard - clock.frame_samples * frames, 0.0).max() / SAMPLE_RATE
            max_backlog = max(max_backlog, float(behind))
            gave_up = behind > GIVE_UP_BACKLOG_S
        with in_engine:
            outputs = engine.step() if engine.has_work() else None
        if outputs is not None:
            for output in outputs:
                if output.failed is not None:
                    gave_up, failure = True, failure or str(output.failed)
                if output.is_final:
                    final_at[output.stream - 1] = time_of.now()
                    checkpoints.drop(output.stream)
                else:
                    checkpoints.decoded(output.stream, output.samples_decoded)
            for name in checkpoints.next_ones(engine.is_under_way) if replay_s else ():
                if not snapshots.has_room():
                    break
                try:
                    with in_engine:
                        taken = engine.snapshot(name)
                except EngineError:
                    # Its end came with the running step, which can happen in a worker, too.
                    checkpoints.drop(name)
                    continue
                checkpoints.taken(name, taken.samples_decoded)
                snapshots.put(taken)
        elif not np.isnan(final_at).any():
            break
        else:
            idle_s += _IDLE_S
            time_of.sleep(_IDLE_S)
    wall, thread_s = time_of.now() - origin, time.thread_time() - thread_began_s
    made_up_s = steps.inner.made_up_s if isinstance(steps.inner, SimulatedSteps) else 0.0
    engine_s = in_engine.seconds - steps.noting.seconds - made_up_s
    gc.unfreeze()
    gc.set_threshold(*thresholds)
    snapshots.stop()
    stats = engine.stats
    busy = stats.pre_encode.busy_s + stats.encode.busy_s + stats.decode.busy_s
    waits = []
    for started, (streams, chunks) in zip(steps.started, steps.rows, strict=True):
        there = origin + arrival[streams] + (first + chunks * chunk) / SAMPLE_RATE
        waits.append(started - there)
    wait_s = np.concatenate(waits) if waits else np.zeros(1)
    last_sample = origin + arrival + length / SAMPLE_RATE
    chunk_s = chunk / SAMPLE_RATE
    final_ms = 1000 * (final_at - last_sample - chunk_s)
    missing = bool(np.isnan(final_ms).any())
    step_ms = 1000 * (np.array(steps.over) - np.array(steps.began))
    late = float((wait_s > chunk_s).mean())
    final_p50, final_p95 = (
        np.inf if missing else float(np.percentile(final_ms, share)) for share in (50, 95)
    )
    return TrialResult(
        streams=num_streams,
        seconds=seconds,
        passed=not gave_up
        and late <= MAX_LATE_SHARE
        and final_p95 <= MAX_FINAL_MS
        and max_backlog <= MAX_BACKLOG_S,
        chunks=len(wait_s),
        late_share=late,
        wait_p50_ms=1000 * float(np.percentile(wait_s, 50)),
        wait_p99_ms=1000 * float(np.percentile(wait_s, 99)),
        final_p50_ms=final_p50,
        final_p95_ms=final_p95,
        max_backlog_s=max_backlog,
        steps=len(step_ms),
        rows_per_step=sum(rows.shape[1] for rows in steps.rows) / max(1, len(step_ms)),
        # A trial whose streams all fail at once has no step.
        step_p50_ms=float(np.percentile(step_ms, 50)) if len(step_ms) else np.inf,
        step_p99_ms=float(np.percentile(step_ms, 99)) if len(step_ms) else np.inf,
        device_busy=busy / wall,
        host_busy=1.0 - (idle_s + steps.waited_s) / wall,
        host_us_a_chunk=1e6 * thread_s / max(1, len(wait_s)),
        engine_us_a_chunk=1e6 * engine_s / max(1, len(wait_s)),
        tokens_per_second=(stats.tokens - tokens_before) / (num_streams * length / SAMPLE_RATE),
        finals=int((~np.isnan(final_at)).sum()),
        longest_turn_ms=1000 * longest.seconds,
        longest_turn_at_s=longest.began_at - origin,
        longest_turn_wait_ms=1000 * longest.waited_s,
        longest_turn_cpu_ms=1000 * longest.cpu_s,
        snapshots=snapshots.taken,
        snapshot_bytes=snapshots.num_bytes,
        lists_replaced=replaced_lists,
        failure=failure,
    )
