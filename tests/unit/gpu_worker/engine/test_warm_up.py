"""Audio brings back what a snapshot leaves out, exactly, where all of it is heard that is in reach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import EngineError
from gpu_worker.engine.steps import KeptFrames
from gpu_worker.model.reach import reach_frames
from gpu_worker.steps.factory import make_model_engine
from tests.contracts.engine_contract import step_until_idle, told
from tests.oracle.models import ALL_RECORDINGS, JFK, random_model, speech, tiny

STREAM = StreamId(1)


def make(context: tuple[int, int], *, turns: bool = False, reach: int | None = None) -> SpeechEngine:
    config = EngineConfig(
        num_slots=2,
        context=context,
        page_frames=8,
        batch_sizes=BatchSizes(2, 2, 2),
        turn_detection=turns,
        audio_snapshots=True,
    )
    engine = make_model_engine(random_model(2), config)
    if reach is not None:
        # The parts of an engine look at the same shape.
        engine.steps.shape = replace(engine.steps.shape, reach_frames=reach)
    return engine


def long_speech() -> NDArray[np.float32]:
    return np.concatenate([speech(name) for name in ALL_RECORDINGS])


def state_of(engine: SpeechEngine, stream: StreamId) -> dict[str, NDArray[np.float32]]:
    slot, frames = (
        engine._streams.get(stream).slot,
        int(engine._table.decoded[engine._streams.get(stream).slot]),
    )
    kept = np.arange(frames - engine.steps.shape.pages.left_frames, frames, dtype=np.int64)
    found = engine.steps.export(slot, KeptFrames(*engine._blocks.locate(slot, kept)))()
    del found["prompt"]  # type: ignore[attr-defined]
    return {name: np.frombuffer(data, np.float32) for name, data in found.items()}


def difference(context: tuple[int, int], reach: int | None) -> float:
    """Between the state of a stream and what its snapshot and so much audio make of another's slot."""
    samples, first, second = long_speech(), make(context, reach=reach), make(context)
    first.open(STREAM, StreamOptions())
    first.feed(STREAM, samples)
    step_until_idle(first)
    taken = first.snapshot(STREAM)
    assert taken.samples_decoded - taken.first_sample < taken.samples_decoded
    # A slot that has heard something else.
    second.open(StreamId(2), StreamOptions())
    second.feed(StreamId(2), 0.3 * samples[::-1][:200_000])
    step_until_idle(second)
    second.close(StreamId(2))
    second.open(STREAM, StreamOptions(), taken.to_bytes())
    second.feed(STREAM, samples[taken.first_sample : taken.samples_decoded])
    step_until_idle(second)
    ours, theirs = state_of(first, STREAM), state_of(second, STREAM)
    assert ours.keys() == theirs.keys()
    assert {"keys", "values", "conv", "tail", "mel", "hidden"} <= ours.keys()
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours)


@pytest.mark.parametrize("context", [(70, 0), (70, 1), (70, 6), (70, 13)])
def test_what_is_in_reach_brings_back_the_whole_state(context: tuple[int, int]) -> None:
    # Rows of more or fewer chunks add float32 numbers up in another order.
    assert difference(context, None) < 1e-4


@pytest.mark.parametrize("context", [(70, 1), (70, 6)])
def test_less_than_that_does_not(context: tuple[int, int]) -> None:
    reach = reach_frames(random_model(2).config, context)
    assert difference(context, reach - 14 * (1 + context[1])) > 1e-3


def test_reach_of_known_sizes() -> None:
    config = tiny().config
    assert reach_frames(replace(config, num_layers=17), (70, 1)) == 17 * 78 + 4
    assert reach_frames(replace(config, num_layers=24), (70, 1)) == 24 * 78 + 4
    assert reach_frames(replace(config, num_layers=24), (70, 13)) == 24 * 84 + 14


def test_a_stream_that_is_warmed_up_has_no_snapshot_and_cannot_end() -> None:
    samples, first, second = speech(JFK)[:100_000], make((70, 1)), make((70, 1))
    first.open(STREAM, StreamOptions())
    first.feed(STREAM, samples)
    step_until_idle(first)
    taken = first.snapshot(STREAM)
    assert taken.first_sample == 0, "it has not heard more yet"
    second.open(STREAM, StreamOptions(), taken.to_bytes())
    second.feed(STREAM, samples[:50_000])
    outputs = step_until_idle(second)
    assert len(outputs) == 2
    assert told(outputs) == []
    assert second.is_under_way(STREAM)
    assert second.samples_decoded(STREAM) == taken.samples_decoded
    with pytest.raises(EngineError, match="has not reached"):
        second.snapshot(STREAM)
    with pytest.raises(EngineError, match="ends before the snapshot"):
        second.finish(STREAM)
    second.feed(STREAM, samples[50_000 : taken.samples_decoded])
    second.finish(STREAM)
    rest = told(step_until_idle(second))
    assert rest[-1].is_final
    assert rest[-1].samples_decoded == taken.samples_decoded


def test_a_whole_snapshot_needs_no_audio() -> None:
    samples, first, second = speech(JFK), make((70, 1)), make((70, 1))
    first.open(STREAM, StreamOptions())
    first.feed(STREAM, samples[:100_000])
    before = step_until_idle(first)
    taken = first.snapshot(STREAM, whole=True)
    assert taken.first_sample == taken.samples_decoded
    second.open(STREAM, StreamOptions(), taken.to_bytes())
    rest = []
    for engine, at in ((first, 100_000), (second, taken.samples_decoded)):
        engine.feed(STREAM, samples[at:])
        engine.finish(STREAM)
        rest.append(told(step_until_idle(engine)))
    assert told(before)
    assert rest[0] == rest[1]


def test_a_stream_that_is_closed_while_it_is_warmed_up_leaves_a_clean_slot() -> None:
    samples, engine = speech(JFK), make((70, 1), turns=True)
    engine.open(STREAM, StreamOptions())
    engine.feed(STREAM, samples)
    step_until_idle(engine)
    taken = engine.snapshot(STREAM)
    engine.open(StreamId(2), StreamOptions(), taken.to_bytes())
    engine.feed(StreamId(2), samples[:30_000])
    engine.step()
    engine.close(StreamId(2))
    engine.check_integrity()
    engine.open(StreamId(3), StreamOptions())
    engine.feed(StreamId(3), samples)
    engine.finish(StreamId(3))
    found = [output for output in step_until_idle(engine) if output.stream == 3]
    alone = make((70, 1), turns=True)
    alone.open(StreamId(3), StreamOptions())
    alone.feed(StreamId(3), samples)
    alone.finish(StreamId(3))
    assert told(found) == told(step_until_idle(alone))
