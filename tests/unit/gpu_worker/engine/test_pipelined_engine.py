"""The pipelined engine says what the plain one says, whatever is under way when it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.engine import EngineConfig, NativeEngine
from gpu_worker.engine.interface import (
    Engine,
    EngineError,
    EngineFull,
    OutOfPages,
    StreamFinished,
    StreamOutput,
    UnknownStream,
)
from gpu_worker.engine.model_runner import BatchSizes
from gpu_worker.engine.pipelined_engine import PipelinedEngine
from gpu_worker.engine.pipelined_factory import make_pipelined_engine
from gpu_worker.engine.samples import Samples
from tests.oracle.models import GO_FORWARD, JFK, SHORT_SENTENCE, random_model, speech, tiny

CONFIG = EngineConfig(
    num_slots=3, context=(70, 1), page_frames=8, batch_sizes=BatchSizes(2, 2, 2), turn_detection=False
)
Recordings = dict[int, NDArray[np.float32]]


def make(config: EngineConfig = CONFIG) -> PipelinedEngine:
    return make_pipelined_engine(random_model(2), config)


def as_pcm16(samples: NDArray[np.float32]) -> Samples:
    """The same as a client sends it, where it can be said so."""
    pcm = np.round(32_768 * samples)
    fits = np.array_equal(pcm / np.float32(32_768), samples) and pcm.min(initial=0) >= -32_768
    return pcm.astype(np.int16) if fits and pcm.max(initial=0) <= 32_767 else samples


def test_recordings_are_fed_as_pcm16_too() -> None:
    assert as_pcm16(speech(GO_FORWARD)).dtype == np.int16


def step_until_idle(engine: Engine) -> list[StreamOutput]:
    outputs: list[StreamOutput] = []
    while engine.has_work():
        outputs += engine.step()
        engine.check_integrity()
    return outputs


def run(engine: Engine, audio: Recordings, seed: int, words: bool = False) -> dict[int, list[StreamOutput]]:
    """Feed all recordings in random pieces, stepping in between."""
    rng = np.random.default_rng(seed)
    outputs: dict[int, list[StreamOutput]] = {number: [] for number in audio}
    position = dict.fromkeys(audio, 0)
    for number in audio:
        engine.open(StreamId(number), StreamOptions(words=words))
    while position or engine.has_work():
        for number, first in list(position.items()):
            size = int(rng.choice([1, 160, 700, 2_560, 9_000, 40_000]))
            piece = audio[number][first : first + size]
            engine.feed(StreamId(number), as_pcm16(piece) if rng.integers(2) else piece)
            position[number] = first + size
            if first + size >= len(audio[number]):
                engine.finish(StreamId(number))
                del position[number]
        for output in engine.step():
            outputs[output.stream].append(output)
        engine.check_integrity()
    return outputs


def told(outputs: list[StreamOutput]) -> list[StreamOutput]:
    """What clients see, but for scores, whose last digits depend on the batch."""
    return [
        replace(
            output,
            confidence_scores=(),
            words=None if output.words is None else tuple(replace(w, confidence=0.0) for w in output.words),
        )
        for output in outputs
        if output.changed
    ]


@pytest.mark.parametrize("context", [(70, 13), (70, 1), (70, 0)], ids=str)
@pytest.mark.parametrize("turns", [False, True])
def test_same_outputs_as_the_plain_engine(context: tuple[int, int], turns: bool) -> None:
    config = replace(CONFIG, context=context, turn_detection=turns)
    audio = {1: speech(GO_FORWARD), 2: speech(JFK)[:48_000], 3: speech(SHORT_SENTENCE)[:20_001]}
    expected = run(NativeEngine(tiny(), config), audio, seed=1, words=True)
    found = run(make_pipelined_engine(tiny(), config), audio, seed=2, words=True)
    assert found[1][-1].text.startswith("go f")
    for number in audio:
        assert told(found[number]) == told(expected[number])


def test_acknowledges_every_second_without_words() -> None:
    outputs = run(make_pipelined_engine(tiny(), CONFIG), {1: np.zeros(70_000, dtype=np.float32)}, seed=3)[1]
    assert not any(output.token_ids for output in outputs)
    covered = [output.samples_decoded for output in outputs]
    assert covered[-1] == 70_000
    assert (
        max(after - before for before, after in zip([0, *covered], covered, strict=False)) <= 16_000 + 2_560
    )


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("turns", [False, True])
def test_snapshot_with_a_step_under_way(steps: int, turns: bool) -> None:
    config, samples = replace(CONFIG, turn_detection=turns), speech(JFK)[:40_000]
    whole = run(make(config), {1: samples}, seed=0)[1]
    first, second = make(config), make(config)
    first.open(StreamId(1), StreamOptions())
    first.feed(StreamId(1), samples[:24_000])
    outputs = [output for _ in range(steps) for output in first.step()]
    position = first.samples_decoded(StreamId(1))
    assert position == first.clock.samples_of_chunks(steps)
    snapshot = first.snapshot(StreamId(1))
    second.open(StreamId(1), StreamOptions(), snapshot)
    assert second.samples_decoded(StreamId(1)) == position
    second.feed(StreamId(1), samples[position:])
    second.finish(StreamId(1))
    assert told(outputs + step_until_idle(second)) == told(whole)
    # The stream that was left behind still goes on as if nothing had been.
    first.feed(StreamId(1), samples[24_000:])
    first.finish(StreamId(1))
    assert told(outputs + step_until_idle(first)) == told(whole)


def test_snapshot_before_anything_was_decoded_is_refused() -> None:
    engine = make()
    engine.open(StreamId(1), StreamOptions())
    with pytest.raises(EngineError):
        engine.snapshot(StreamId(1))


def test_a_slot_taken_anew_holds_nothing_of_its_last_stream() -> None:
    config = replace(CONFIG, num_slots=1, batch_sizes=BatchSizes(1, 1, 1))
    engine, samples = make(config), speech(SHORT_SENTENCE)[:30_000]
    expected = told(run(make(config), {1: samples}, seed=0)[1])
    engine.open(StreamId(7), StreamOptions())
    engine.feed(StreamId(7), speech(JFK)[:60_000])
    engine.step()
    engine.step()
    # A step of the old stream is under way when the new one takes its slot.
    engine.close(StreamId(7))
    engine.check_integrity()
    assert told(run(engine, {1: samples}, seed=4)[1]) == expected


def test_out_of_pages_sheds_the_newest_stream_alone() -> None:
    config = replace(CONFIG, num_pages=12)
    samples = speech(JFK)[:120_000]
    expected = told(run(make(), {1: samples}, seed=0)[1])
    engine = make(config)
    for number in (1, 2):
        engine.open(StreamId(number), StreamOptions())
        engine.feed(StreamId(number), samples)
        engine.finish(StreamId(number))
    outputs = step_until_idle(engine)
    failed = [output for output in outputs if output.failed is not None]
    assert [output.stream for output in failed] == [2]
    assert isinstance(failed[0].failed, OutOfPages)
    assert told([output for output in outputs if output.stream == 1]) == expected
    assert engine.stats.open_streams == 0


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda engine: engine.open(StreamId(1), StreamOptions()), ValueError),
        (lambda engine: engine.feed(StreamId(9), np.zeros(1, dtype=np.float32)), UnknownStream),
        (lambda engine: engine.feed(StreamId(1), np.full(5, np.nan, dtype=np.float32)), ValueError),
        (lambda engine: engine.feed(StreamId(1), np.zeros(5)), ValueError),
        (lambda engine: engine.feed(StreamId(2), np.zeros(5, dtype=np.float32)), StreamFinished),
        (lambda engine: engine.open(StreamId(4), StreamOptions()), EngineFull),
        (lambda engine: engine.open(StreamId(5), StreamOptions(), b"nothing"), EngineError),
    ],
)
def test_refusals_leave_the_engine_sound(
    call: Callable[[PipelinedEngine], None], error: type[Exception]
) -> None:
    engine = make()
    for number in (1, 2, 3):
        engine.open(StreamId(number), StreamOptions())
    engine.finish(StreamId(2))
    with pytest.raises(error):
        call(engine)
    engine.check_integrity()
    assert [output.stream for output in step_until_idle(engine)] == [2]


def test_loud_samples_are_clipped_as_in_the_plain_engine() -> None:
    samples = np.tile(np.array([3e30, -3e30, 0.5], dtype=np.float32), 4_000)
    expected = run(NativeEngine(random_model(2), CONFIG), {1: samples}, seed=0)[1]
    assert told(run(make(), {1: samples}, seed=0)[1]) == told(expected)
