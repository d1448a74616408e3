"""Measures how many streams an engine carries in real time, before it serves any.

Streams of noise that are as old as the model's left context bring one chunk each, again and again: one
stream, then four, sixteen and so on. This yields the time of a step as a function of its rows. An engine
keeps up with real time if its steps leave a fifth of a chunk's duration to all other work. Beyond the
measured rows, the last slope is extrapolated.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import ENGINE_SAMPLE_RATE, EngineError

# Share of a chunk's duration that steps may take.
BUSY_SHARE: Final = 0.8
# The longest left context of the published models is 70 frames of 80 ms.
_AGE_S: Final = 5.6
# Share of the measurement's time for reaching that age.
_AGEING_SHARE: Final = 0.3
_ROUNDS: Final = 3
_GROWTH: Final = 4
# An estimate goes at most this many times beyond the measured rows.
_MAX_BEYOND: Final = 8
_LOUDNESS: Final = 0.1
# Ids that no client's stream has.
_FIRST_ID: Final = -2


@dataclass(frozen=True, slots=True)
class Capacity:
    """The measured capacity of an engine.

    num_streams: streams that are carried in real time.
    num_measured: most streams that had a chunk at once; 0 for a lane, which has a share of its group's
        capacity.
    step_s: duration of a round of `num_measured` streams, in seconds.
    is_least: whether `num_streams` is a lower bound, since the bound of the estimate was reached.
    """

    num_streams: int
    num_measured: int
    step_s: float
    is_least: bool

    def shared_by(self, num_lanes: int) -> Capacity:
        """Return the capacity of each of `num_lanes` lanes."""
        return Capacity(self.num_streams // num_lanes, 0, 0.0, self.is_least)

    def __str__(self) -> str:
        """Return the text for the log."""
        least = "at least " if self.is_least else ""
        if self.num_measured:
            how = f"{self.num_measured} at once took {self.step_s * 1000:.1f} ms"
        else:
            how = "a lane's part of what its group measured"
        return f"{least}{self.num_streams} streams in real time ({how})"


def measure_capacity(engine: SpeechEngine, seconds: float) -> Capacity | None:
    """Measure the capacity for about `seconds`, and at most twice as long, apart from the running step.

    Returns None where the engine had no room for a stream. The engine must have no stream before; it has none
    afterwards, and its counters are unchanged.
    """
    before = engine.stats.copied()
    rounds = _Rounds(engine)
    try:
        return _measured(rounds, time.monotonic() + seconds, seconds)
    finally:
        rounds.close()
        engine.stats.set_to(before)


def _measured(rounds: _Rounds, deadline: float, seconds: float) -> Capacity | None:
    rounds.grow_old(deadline - (1 - _AGEING_SHARE) * seconds)
    limit_s = BUSY_SHARE * rounds.chunk_s
    points: list[tuple[int, float]] = []
    rows = 1
    while True:
        began = time.monotonic()
        rounds.widen(rows)
        step_s = rounds.median_s()
        if rounds.is_full:
            break
        points.append((rows, step_s))
        spent_s = time.monotonic() - began
        if step_s >= limit_s or rows == rounds.max_streams or time.monotonic() + 2 * spent_s > deadline:
            break
        rows = min(_GROWTH * rows, rounds.max_streams)
    return _estimate(points, limit_s) if points else None


def _estimate(points: list[tuple[int, float]], limit_s: float) -> Capacity:
    rows, step_s = points[-1]
    fewer, less_s = points[-2] if len(points) > 1 else (0, 0.0)
    # A larger batch is never faster; where it was, the clock was inexact.
    slope_s = max((step_s - less_s) / (rows - fewer), step_s / rows / _MAX_BEYOND, 1e-9)
    estimate = int(rows + (limit_s - step_s) / slope_s)
    most = _MAX_BEYOND * rows
    return Capacity(max(0, min(estimate, most)), rows, step_s, is_least=estimate >= most)


class _Rounds:
    """Rounds of streams of noise: each stream has one chunk in a round.

    is_full: whether the engine had no room for one of the streams.
    """

    def __init__(self, engine: SpeechEngine) -> None:
        self._engine = engine
        self._streams: set[StreamId] = set()
        self._num_opened = 0
        self._snapshot: bytes | None = None
        clock = engine.clock
        self.chunk_s = clock.chunk_samples / ENGINE_SAMPLE_RATE
        self.max_streams = engine.capacity
        self.is_full = False
        noise = np.random.default_rng(0).standard_normal(clock.chunk_samples) * _LOUDNESS
        self._noise = (noise.clip(-1, 1) * 32_767).astype(np.int16)

    def grow_old(self, deadline: float) -> None:
        """Open one stream and age it by some seconds, or as far as time permits."""
        clock = self._engine.clock
        stream = self._open()
        # A stream's first chunk is complete with slightly fewer samples than a chunk's.
        self._engine.feed(stream, self._noise[: clock.samples_of_chunks(1)])
        self._land()
        for _ in range(round(_AGE_S / self.chunk_s)):
            if self.is_full or time.monotonic() > deadline:
                break
            self._run()
        self._land()
        if not self.is_full:
            self._snapshot = self._engine.snapshot(stream, whole=True).to_bytes()

    def widen(self, num_streams: int) -> None:
        """Open more streams of the same age, up to `num_streams`."""
        while not self.is_full and len(self._streams) < num_streams:
            try:
                self._open()
            except EngineError:
                self.is_full = True

    def median_s(self) -> float:
        """Return the median duration of a round, in seconds."""
        self._run()  # the first round pays for new shapes
        times = []
        for _ in range(_ROUNDS):
            began = time.perf_counter()
            self._run()
            times.append(time.perf_counter() - began)
        self._land()
        return median(times)

    def close(self) -> None:
        """Leave the engine empty."""
        for stream in self._streams:
            self._engine.close(stream)
        self._streams.clear()
        self._land()

    def _open(self) -> StreamId:
        stream = StreamId(_FIRST_ID - self._num_opened)
        self._engine.open(stream, StreamOptions(), self._snapshot)
        self._num_opened += 1
        self._streams.add(stream)
        return stream

    def _run(self) -> None:
        for stream in self._streams:
            self._engine.feed(stream, self._noise)
        # If a device works beside the host, the last step of a round is read in the next round.
        for _ in range(-(-len(self._streams) // self._engine.steps.shape.max_rows)):
            self._step()

    def _land(self) -> None:
        while self._engine.has_work():
            self._step()

    def _step(self) -> None:
        for output in self._engine.step():
            if output.failed is not None:  # out of pages
                self._streams.discard(output.stream)
                self.is_full = True
