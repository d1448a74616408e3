"""An engine on a busy host begins its steps further apart, and its results are the same."""

from __future__ import annotations

import numpy as np
import pytest

from common.entries import StreamId
from common.options import StreamOptions
from common.process.pace import Pace
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.steps.factory import make_model_engine
from gpu_worker.steps.null import Letters, NullSteps
from tests.contracts.engine_contract import told
from tests.device.overlapping_steps import OverlappingSteps
from tests.device.paced_host import LONGEST_S, Host
from tests.oracle.models import JFK, random_model, speech


def test_a_paced_engine_reads_what_is_over_and_launches_when_it_is_time() -> None:
    host = Host()
    pace = host.busy_pace()
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
    pace = host.busy_pace()
    paced = told_with(pace, host)
    assert paced == told_with(None, Host())
    assert all(outputs[-1].is_final for outputs in paced)
