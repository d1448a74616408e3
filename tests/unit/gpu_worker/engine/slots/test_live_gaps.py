"""Recordings step by themselves only where no live chunk is near."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.engine import ROWS
from benchmarks.trials.engines import Switches, build_simulated
from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.slots.live_gaps import LiveGaps

LIVE, RECORDING = StreamId(1), StreamId(2)


@dataclass
class Time:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


def gaps_at(time: Time) -> LiveGaps:
    gaps = LiveGaps(3, 0.16, time)
    gaps.took(0.01)
    return gaps


def came(gaps: LiveGaps, *slots: int) -> None:
    gaps.came(np.array(slots, dtype=np.int64))


def test_a_gap_ends_a_step_before_the_next_chunk() -> None:
    time = Time()
    gaps = gaps_at(time)
    assert gaps.wait_s() == 0
    came(gaps, 1)
    time.now_s = 100.149
    assert gaps.wait_s() == 0
    time.now_s = 100.155
    # The chunk is 5 ms away, and may come 20 ms late.
    assert gaps.wait_s() == pytest.approx(0.025)


def test_a_chunk_that_does_not_come_is_not_waited_for_long() -> None:
    time = Time()
    gaps = gaps_at(time)
    came(gaps, 1)
    time.now_s = 100.16 + 0.021
    assert gaps.wait_s() == 0


def test_a_chunk_that_another_step_kept_back_does_not_move_its_rhythm() -> None:
    time = Time()
    gaps = gaps_at(time)
    came(gaps, 1)
    time.now_s = 100.16 + 0.010
    came(gaps, 1)
    time.now_s = 100.32
    # A tenth of the 10 ms, as a stream whose clock is slower would have it.
    assert gaps.wait_s() == pytest.approx(0.001 + 0.02)
    time.now_s = 100.16 + 0.130
    came(gaps, 1)
    time.now_s += 0.155
    assert gaps.wait_s() == pytest.approx(0.025), "who begins anew has a new rhythm"


def test_one_step_that_was_held_up_does_not_close_all_gaps_for_good() -> None:
    time = Time()
    gaps = gaps_at(time)
    gaps.took(3.0)
    came(gaps, 1)
    time.now_s += 0.1
    assert gaps.wait_s() > 0
    for _ in range(200):
        time.now_s += 0.16
        came(gaps, 1)
    time.now_s += 0.1
    assert gaps.wait_s() == 0


def test_a_gap_that_was_too_short_is_not_taken_again_soon() -> None:
    time = Time()
    gaps = gaps_at(time)
    gaps.took(0.03)
    gaps.took(0.004)
    came(gaps, 1)
    for _ in range(100):
        time.now_s += 0.16
        came(gaps, 1)
    time.now_s += 0.16 - 0.015
    assert gaps.wait_s() > 0
    gaps.took(0.004)
    gaps.took(0.004)
    assert gaps.wait_s() == 0


def test_a_stream_that_is_over_is_not_waited_for() -> None:
    time = Time()
    gaps = gaps_at(time)
    came(gaps, 0, 1)
    time.now_s = 100.158
    gaps.drop(0)
    assert gaps.wait_s() > 0
    gaps.drop(1)
    assert gaps.wait_s() == 0


@dataclass
class Table:
    """Slots 0 and 1 are live and 2 is a recording. is_ready: those with a chunk."""

    is_ready: list[int]
    num_recordings: int = 1
    recording: NDArray[np.bool_] = field(default_factory=lambda: np.array([False, False, True]))

    def ready(self) -> NDArray[np.int64]:
        return np.array(self.is_ready, dtype=np.int64)


def rows(gaps: LiveGaps, table: Table, *, overlaps: bool = False) -> int:
    shape = SimpleNamespace(recording_rows=2, overlaps=overlaps)
    return gaps.recording_rows(table, shape)  # type: ignore[arg-type]


def test_a_step_for_which_a_live_chunk_has_waited_goes_without_recordings() -> None:
    time = Time()
    gaps = gaps_at(time)
    came(gaps, 0, 1)
    time.now_s = 100.155
    gaps.ended()
    time.now_s = 100.16
    assert rows(gaps, Table([0, 2])) == 2, "its chunk came behind the last step"
    time.now_s = 100.165
    gaps.ended()
    assert rows(gaps, Table([0, 2])) == 0, "it came while that step ran"
    assert rows(gaps, Table([0, 2]), overlaps=True) == 2
    assert rows(gaps, Table([2])) == 2
    assert rows(gaps, Table([0, 2], num_recordings=0)) == 2
    came(gaps, 0)
    assert rows(gaps, Table([0, 2])) == 2, "its next chunk is not due yet"


def test_recordings_have_a_row_now_and_then_where_live_chunks_always_wait() -> None:
    time = Time()
    gaps = gaps_at(time)
    came(gaps, 0)
    time.now_s = 100.17
    gaps.ended()
    given = [rows(gaps, Table([0, 2])) for _ in range(27)]
    assert given == ([0] * 8 + [2]) * 3


def test_the_engine_keeps_recordings_back_where_a_live_chunk_is_near() -> None:
    time = Time()
    engine = build_simulated(ROWS["small-160"], 4, 0.0, 0.0, Switches(pace_ms=0.0)).engine
    engine._gaps.clock = time
    chunk = np.zeros(engine.clock.chunk_samples, dtype=np.int16)

    def step_all() -> int:
        before = engine.stats.steps
        while engine.has_work():
            engine.step()
            time.now_s += 0.001 if engine.is_stepping() else 0.0
        return engine.stats.steps - before

    engine.open(LIVE, StreamOptions())
    engine.open(RECORDING, StreamOptions(recording=True))
    engine.feed(LIVE, chunk)
    for _ in range(3):
        engine.feed(RECORDING, chunk)
    assert step_all() == 3, "one with the live chunk, and two in the gap behind it"
    came_s = time.now_s - 0.003
    time.now_s = came_s + 0.1599
    engine.feed(RECORDING, chunk)
    assert not engine.has_work()
    waits_s = engine.wait_s()
    assert waits_s is not None
    assert 0 < waits_s < 0.025
    assert not engine.step(), "a step that nobody asked for leaves them waiting, too"
    engine.feed(LIVE, chunk)
    assert step_all() == 1, "they go along with the live chunk"
    engine.feed(RECORDING, chunk)
    time.now_s += 0.16 + 0.021
    assert step_all() == 1, "a chunk that does not come is not waited for"
    time.now_s += 0.139
    engine.feed(RECORDING, chunk)
    engine.close(LIVE)
    assert step_all() == 1, "alone, they have all steps"
    engine.check_integrity()
