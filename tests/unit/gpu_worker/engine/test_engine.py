"""The engine on real speech: equal to offline whatever the batch, the cuts and the interruptions."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import (
    SnapshotMismatch,
    StreamOutput,
)
from gpu_worker.steps.factory import make_model_engine
from tests.oracle.models import (
    GO_FORWARD,
    JFK,
    LONG_SENTENCE,
    SHORT_SENTENCE,
    offline,
    random_model,
    speech,
    tiny,
)

CONTEXTS = ((70, 13), (70, 6), (70, 1), (70, 0))
CONFIG = EngineConfig(num_slots=4, context=(70, 1), turn_detection=False)


def make_engine(config: EngineConfig = CONFIG) -> SpeechEngine:
    return make_model_engine(tiny(), config)


def stream(number: int) -> StreamId:
    return StreamId(number)


def run_until_idle(engine: SpeechEngine) -> list[StreamOutput]:
    outputs: list[StreamOutput] = []
    while engine.has_work():
        outputs += engine.step()
        engine.check_integrity()
    return outputs


def transcribe(engine: SpeechEngine, samples: NDArray[np.float32], number: int = 1) -> list[StreamOutput]:
    """All outputs of a recording fed whole."""
    engine.open(stream(number), StreamOptions())
    engine.feed(stream(number), samples)
    engine.finish(stream(number))
    return run_until_idle(engine)


def tokens_of(outputs: list[StreamOutput]) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def without_confidence(output: StreamOutput) -> StreamOutput:
    return replace(output, confidence_scores=())


def test_go_forward_ten_meters() -> None:
    outputs = transcribe(make_engine(replace(CONFIG, turn_detection=True)), speech(GO_FORWARD))
    assert outputs[-1].text == "go forward ten meters"
    assert outputs[-1].is_final
    assert [output.is_final for output in outputs].count(True) == 1
    assert outputs[-1].samples_decoded == len(speech(GO_FORWARD))
    ends = [output for output in outputs if output.turn_detection == "end_of_utterance"]
    assert len(ends) == 1
    assert ends[0].is_turn_event
    assert {output.last_state for output in outputs} == {"speech", "silence"}


@pytest.mark.parametrize("context", CONTEXTS, ids=str)
def test_outputs_stand_at_ends_of_chunks_and_equal_offline(context: tuple[int, int]) -> None:
    engine = make_engine(replace(CONFIG, context=context))
    samples = speech(SHORT_SENTENCE)
    outputs = transcribe(engine, samples)
    expected = offline(SHORT_SENTENCE, context)
    assert tokens_of(outputs) == expected.tokens
    assert [frame for output in outputs for frame in output.token_frames] == expected.frames
    confidences = [score for output in outputs for score in output.confidence_scores]
    assert confidences == pytest.approx(expected.confidences, rel=1e-2, abs=1e-6)
    chunks = engine.clock.whole_chunks(len(samples))
    positions = [output.samples_decoded for output in outputs]
    ends = [engine.clock.samples_of_chunks(chunk + 1) for chunk in range(chunks)] + [len(samples)]
    assert [end for end in ends if end in positions] == positions, "every output is at the end of a chunk"
    acknowledged = {end for begin, end in pairwise([0, *ends]) if begin // 16_000 < end // 16_000}
    assert acknowledged.issubset(positions)
    for output in outputs:
        assert output.changed == (bool(output.token_ids) or output.is_final)
        end = output.samples_decoded
        assert all(
            engine.clock.samples_of_frames(frame + 1) <= end or output.is_final
            for frame in output.token_frames
        )


@dataclass
class Feeder:
    """Feeds a recording in random messages, now and then nothing, and collects its outputs."""

    samples: NDArray[np.float32]
    rng: np.random.Generator
    position: int = 0
    finished: bool = False
    outputs: list[StreamOutput] = field(default_factory=list)

    def feed(self, engine: SpeechEngine, number: StreamId) -> None:
        if self.finished or self.rng.random() < 0.3:
            return
        size = int(self.rng.choice([1, 160, 700, 2_560, 9_000, 40_000]))
        engine.feed(number, self.samples[self.position : self.position + size])
        self.position += size
        if self.position >= len(self.samples) and self.rng.random() < 0.7:
            engine.finish(number)
            self.finished = True


@pytest.mark.parametrize(
    ("context", "page_frames"), [((70, 13), 16), ((70, 6), 0), ((70, 1), 16), ((70, 0), 0)], ids=str
)
def test_random_messages_mates_and_ages(context: tuple[int, int], page_frames: int) -> None:
    rng = np.random.default_rng(page_frames + context[1])
    pieces = [
        (name, int(length) if length else None)
        for name in (GO_FORWARD, JFK, LONG_SENTENCE)
        for length in (0, *rng.choice([200, 1_480, 1_490, 7_000, 20_011], 2))
    ]
    sizes = BatchSizes(2, 5, 3)
    engine = make_engine(
        replace(CONFIG, num_slots=6, context=context, page_frames=page_frames, batch_sizes=sizes)
    )
    waiting = [(stream(n), Feeder(speech(name)[:length], rng)) for n, (name, length) in enumerate(pieces)]
    all_feeders = dict(waiting)
    live: dict[StreamId, Feeder] = {}
    while waiting or live:
        while waiting and len(live) < engine.capacity and rng.random() < 0.5:
            number, feeder = waiting.pop()
            engine.open(number, StreamOptions())
            live[number] = feeder
        for number, feeder in live.items():
            feeder.feed(engine, number)
        while engine.has_work() and rng.random() < 0.7:
            for output in engine.step():
                all_feeders[output.stream].outputs.append(output)
                if output.is_final:
                    del live[output.stream]
            engine.check_integrity()
    for index, (name, length) in enumerate(pieces):
        outputs = all_feeders[stream(index)].outputs
        expected = offline(name, context, length)
        assert tokens_of(outputs) == expected.tokens, (name, length)
        assert outputs[-1].text == tiny().tokenizer.decode(expected.tokens)
        alone = transcribe(make_engine(replace(CONFIG, context=context)), speech(name)[:length], index)
        assert [*map(without_confidence, outputs)] == [*map(without_confidence, alone)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 16])
def test_same_outputs_at_any_batch_size(batch_size: int) -> None:
    sizes = BatchSizes(batch_size, batch_size, batch_size)
    engine = make_engine(replace(CONFIG, num_slots=16, batch_sizes=sizes))
    names = [GO_FORWARD, SHORT_SENTENCE] * 8
    for number, name in enumerate(names):
        engine.open(stream(number), StreamOptions())
        engine.feed(stream(number), speech(name)[: 30_000 + 400 * number])
        engine.finish(stream(number))
    finals = {output.stream: output for output in run_until_idle(engine) if output.is_final}
    for number, name in enumerate(names):
        expected = offline(name, (70, 1), 30_000 + 400 * number)
        assert finals[stream(number)].text == tiny().tokenizer.decode(expected.tokens)


def test_catching_up_takes_several_chunks_a_step_and_changes_nothing() -> None:
    samples = speech(JFK)
    slow, fast = make_engine(replace(CONFIG, max_step_frames=2)), make_engine()
    one_by_one, together = transcribe(slow, samples), transcribe(fast, samples)
    assert [*map(without_confidence, one_by_one)] == [*map(without_confidence, together)]
    assert fast.stats.steps < slow.stats.steps / 3
    assert fast.stats.pre_encode.units == slow.stats.pre_encode.units


@pytest.mark.parametrize("num_samples", [0, 1, 199, 200, 1_480])
def test_the_shortest_streams_end(num_samples: int) -> None:
    outputs = transcribe(make_engine(replace(CONFIG, turn_detection=True)), speech(JFK)[:num_samples])
    assert outputs[-1].is_final
    assert outputs[-1].samples_decoded == num_samples
    assert outputs[-1].text == ""


@pytest.mark.parametrize(
    ("context", "turn_detection"),
    [((70, 13), True), ((70, 6), False), ((70, 1), True), ((70, 1), False), ((70, 0), True)],
    ids=str,
)
def test_a_snapshot_goes_on_exactly(context: tuple[int, int], turn_detection: bool) -> None:
    samples = speech(LONG_SENTENCE)
    config = replace(CONFIG, context=context, turn_detection=turn_detection)
    options = StreamOptions(words=True)
    engine = make_engine(config)
    engine.open(stream(1), options)
    engine.feed(stream(1), samples)
    engine.finish(stream(1))
    whole = run_until_idle(engine)

    engine = make_engine(config)
    engine.open(stream(1), options)
    engine.feed(stream(1), samples[:61_111])
    first = run_until_idle(engine)
    snapshot = engine.snapshot(stream(1)).to_bytes()
    decoded = engine.samples_decoded(stream(1))
    assert decoded == engine.clock.samples_of_chunks(engine.clock.whole_chunks(61_111))

    # Another engine, another slot, other pages, a neighbour in between.
    other = make_engine(replace(config, page_frames=16, num_slots=3))
    other.open(stream(8), StreamOptions())
    other.feed(stream(8), speech(JFK)[:40_000])
    run_until_idle(other)
    other.open(stream(1), options, snapshot)
    assert other.samples_decoded(stream(1)) == decoded
    assert other.snapshot(stream(1)).to_bytes() == snapshot, "what was put in comes out again"
    other.feed(stream(1), samples[decoded:])
    other.finish(stream(1))
    rest = [output for output in run_until_idle(other) if output.stream == 1]
    assert [*map(without_words_confidence, first + rest)] == [*map(without_words_confidence, whole)]


def without_words_confidence(output: StreamOutput) -> StreamOutput:
    words = output.words and tuple(replace(word, confidence=0.0) for word in output.words)
    return replace(output, confidence_scores=(), words=words)


def test_snapshots_of_others_are_refused_and_leave_no_trace() -> None:
    engine = make_engine()
    engine.open(stream(1), StreamOptions())
    engine.feed(stream(1), speech(GO_FORWARD))
    run_until_idle(engine)
    blob = engine.snapshot(stream(1)).to_bytes()
    for other in (
        make_engine(replace(CONFIG, context=(70, 6))),
        make_engine(replace(CONFIG, reset_at_end=False)),
        make_model_engine(random_model(), CONFIG),
    ):
        with pytest.raises(SnapshotMismatch):
            other.open(stream(1), StreamOptions(), blob)
        other.check_integrity()
        assert other.stats.open_streams == 0
    for broken in (b"", b"no snapshot", blob[:1_000], blob[:-10]):
        with pytest.raises(SnapshotMismatch):
            engine.open(stream(2), StreamOptions(), broken)
    engine.check_integrity()


def test_streams_that_end_leave_no_cycles() -> None:
    """A worker looks for cycles rarely: what a stream holds must go without that."""
    engine = make_engine(replace(CONFIG, turn_detection=True))
    transcribe(engine, speech(GO_FORWARD), 1)
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        transcribe(engine, speech(GO_FORWARD), 2)
        engine.open(stream(3), StreamOptions())
        engine.feed(stream(3), speech(GO_FORWARD))
        engine.step()
        engine.snapshot(stream(3)).to_bytes()
        engine.close(stream(3))
        gc.collect()
        found = [type(one) for one in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
    assert [one for one in found if one.__module__.startswith(("gpu_worker", "common"))] == []


def test_words_stand_once_and_spell_the_text() -> None:
    engine = make_engine()
    engine.open(stream(1), StreamOptions(words=True))
    engine.feed(stream(1), speech(GO_FORWARD))
    engine.finish(stream(1))
    words = [word for output in run_until_idle(engine) for word in output.words or ()]
    assert " ".join(word.word for word in words) == "go forward ten meters"
    assert all(word.start_s < word.end_s for word in words)
    assert [word.start_s for word in words] == sorted(word.start_s for word in words)
    assert all(0.0 < word.confidence <= 1.0 for word in words)
