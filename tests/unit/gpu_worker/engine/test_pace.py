"""Steps of a busy host are further apart, within bounds; those of one at ease begin at once."""

from __future__ import annotations

import numpy as np
import pytest

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.engine.pace import Pace
from gpu_worker.steps.factory import make_model_engine
from gpu_worker.steps.null import Letters, NullSteps
from tests.engine_contract import told
from tests.oracle.models import JFK, random_model, speech
from tests.overlapping_steps import OverlappingSteps

LONGEST_S = 0.02


class Host:
    """A clock, and a processor that works when it is told to."""

    def __init__(self) -> None:
        self.now_s = self.used_s = 0.0

    def pace(self, longest_s: float = LONGEST_S) -> Pace:
        return Pace(longest_s, lambda: self.now_s, lambda: self.used_s)

    def work(self, seconds: float) -> None:
        self.now_s += seconds
        self.used_s += seconds


def settle(host: Host, pace: Pace, step_s: float, row_s: float, rows_a_second: float) -> tuple[float, float]:
    """Steps over all rows that have come; the last second's mean rows a step, and share of the processor."""
    came, rows, steps, used_at = 0.0, 0.0, 0, 0.0
    for until in (4.0, 5.0):
        rows, steps, used_at = 0.0, 0, host.used_s
        while host.now_s < until:
            wait_s = pace.wait_s()
            if wait_s:
                host.now_s += wait_s
            waiting = rows_a_second * host.now_s - came
            if waiting < 1:
                host.now_s += 1 / rows_a_second
                continue
            pace.begun()
            came, rows, steps = came + waiting, rows + waiting, steps + 1
            host.work(step_s + row_s * waiting)
    return rows / steps, host.used_s - used_at


def test_a_host_at_ease_begins_each_step_at_once() -> None:
    host = Host()
    pace = host.pace()
    settle(host, pace, 0.001, 8e-6, 300.0)
    assert pace.interval_s == 0
    assert pace.wait_s() == 0


def test_a_busy_host_makes_larger_steps_and_has_time_to_spare() -> None:
    """62,500 chunks a second, 8 us each, and 1.5 ms for a step: alone they would be 1 : 1."""
    unpaced, paced = Host(), Host()
    rows, share = settle(unpaced, unpaced.pace(0.0), 0.0015, 8e-6, 62_500.0)
    assert share > 0.99
    paced_rows, paced_share = settle(paced, paced.pace(), 0.0015, 8e-6, 62_500.0)
    assert paced_rows > 2 * rows
    assert paced_share < 0.85


def test_the_distance_has_a_bound() -> None:
    host = Host()
    pace = host.pace()
    for _ in range(100):
        pace.begun()
        host.work(0.05)
    assert pace.interval_s == LONGEST_S
    pace.begun()
    assert pace.wait_s() == pytest.approx(LONGEST_S)
    host.now_s += LONGEST_S
    assert pace.wait_s() == 0


def test_the_distance_of_a_host_at_ease_may_be_more_than_nothing() -> None:
    host = Host()
    pace = Pace(LONGEST_S, lambda: host.now_s, lambda: host.used_s, shortest_s=0.005)
    assert pace.interval_s == 0.005
    for _ in range(100):
        pace.begun()
        host.now_s += 0.05
    assert pace.interval_s == 0.005
    for _ in range(100):
        pace.begun()
        host.work(0.05)
    assert pace.interval_s == LONGEST_S


def test_a_paced_engine_reads_what_is_over_and_launches_when_it_is_time() -> None:
    host = Host()
    pace = host.pace()
    while pace.interval_s < LONGEST_S:
        pace.begun()
        host.work(0.05)
    engine = SpeechEngine(OverlappingSteps(NullSteps(1, 160, hears=False)), Letters(), pace=pace)
    engine.open(StreamId(1), StreamOptions())
    engine.feed(StreamId(1), np.ones(2_560, np.float32))
    assert engine.has_work()
    assert engine.step() == [], "it is under way"
    engine.feed(StreamId(1), np.ones(2_560, np.float32))
    assert engine.has_work()
    assert len(engine.step()) == 1, "read, and the next is not begun"
    assert not engine.has_work()
    wait_s = engine.wait_s()
    assert wait_s is not None
    assert wait_s == pytest.approx(LONGEST_S)
    host.now_s += LONGEST_S
    assert engine.has_work()
    assert engine.step() == []
    assert len(engine.step()) == 1
    assert not engine.has_work()
    assert engine.wait_s() is None


def test_what_is_told_does_not_depend_on_the_pace() -> None:
    config = EngineConfig(num_slots=3, context=(70, 1), batch_sizes=BatchSizes(2, 2, 2), max_step_frames=2)
    model = random_model(2)

    def told_with(pace: Pace | None, host: Host) -> list[list[StreamOutput]]:
        steps = OverlappingSteps(make_model_engine(model, config).steps)
        engine = SpeechEngine(steps, model.tokenizer, pace=pace)
        outputs: list[StreamOutput] = []
        streams = [StreamId(number) for number in range(3)]
        for stream in streams:
            engine.open(stream, StreamOptions(words=True))
        for at in range(0, 60_000, 3_000):
            for stream in streams:
                first = at + 5_000 * stream
                engine.feed(stream, speech(JFK)[first : first + 3_000])
                if at == 57_000:
                    engine.finish(stream)
            while engine.has_work():
                outputs += engine.step()
            host.now_s += 0.004
        while engine.stats.open_streams:
            if engine.has_work():
                outputs += engine.step()
            else:
                host.now_s += engine.wait_s() or 0.0
        engine.check_integrity()
        return [told([one for one in outputs if one.stream == stream]) for stream in streams]

    host = Host()
    pace = host.pace()
    while pace.interval_s < LONGEST_S:
        pace.begun()
        host.work(0.05)
    paced = told_with(pace, host)
    assert paced == told_with(None, Host())
    assert all(outputs[-1].is_final for outputs in paced)
