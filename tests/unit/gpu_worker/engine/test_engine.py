"""The engine on real speech: equal to offline whatever the batch, the cuts and the interruptions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.engine import EngineConfig, NativeEngine
from gpu_worker.engine.interface import (
    EngineFull,
    OutOfPages,
    SnapshotMismatch,
    StreamFinished,
    StreamOutput,
    UnknownStream,
)
from gpu_worker.engine.model_runner import BatchSizes
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


def make_engine(config: EngineConfig = CONFIG) -> NativeEngine:
    return NativeEngine(tiny(), config)


def stream(number: int) -> StreamId:
    return StreamId(number)


def run_until_idle(engine: NativeEngine) -> list[StreamOutput]:
    outputs: list[StreamOutput] = []
    while engine.has_work():
        outputs += engine.step()
        engine.check_integrity()
    return outputs


def transcribe(engine: NativeEngine, samples: NDArray[np.float32], number: int = 1) -> list[StreamOutput]:
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
def test_outputs_are_one_a_chunk_and_equal_to_offline(context: tuple[int, int]) -> None:
    engine = make_engine(replace(CONFIG, context=context))
    samples = speech(SHORT_SENTENCE)
    outputs = transcribe(engine, samples)
    expected = offline(SHORT_SENTENCE, context)
    assert tokens_of(outputs) == expected.tokens
    assert [frame for output in outputs for frame in output.token_frames] == expected.frames
    confidences = [score for output in outputs for score in output.confidence_scores]
    assert confidences == pytest.approx(expected.confidences, rel=1e-2, abs=1e-6)
    chunks = engine.clock.whole_chunks(len(samples))
    assert [output.samples_decoded for output in outputs] == [
        *(engine.clock.samples_of_chunks(chunk + 1) for chunk in range(chunks)),
        len(samples),
    ]
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

    def feed(self, engine: NativeEngine, number: StreamId) -> None:
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


def test_the_end_gives_the_same_outputs_whenever_it_is_known() -> None:
    samples = speech(GO_FORWARD)[: 12 * 1280 + 300]
    early = transcribe(make_engine(), samples)
    engine = make_engine()
    engine.open(stream(1), StreamOptions())
    engine.feed(stream(1), samples)
    late = run_until_idle(engine)
    engine.finish(stream(1))
    late += run_until_idle(engine)
    assert [*map(without_confidence, early)] == [*map(without_confidence, late)]


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
    snapshot = engine.snapshot(stream(1))
    decoded = engine.samples_decoded(stream(1))
    assert decoded + engine.samples_waiting(stream(1)) == 61_111

    # Another engine, another slot, other pages, a neighbour in between.
    other = make_engine(replace(config, page_frames=16, num_slots=3))
    other.open(stream(8), StreamOptions())
    other.feed(stream(8), speech(JFK)[:40_000])
    run_until_idle(other)
    other.open(stream(1), options, snapshot)
    assert other.samples_decoded(stream(1)) == decoded
    assert other.snapshot(stream(1)) == snapshot, "what was put in comes out again"
    other.feed(stream(1), samples[decoded:])
    other.finish(stream(1))
    rest = [output for output in run_until_idle(other) if output.stream == 1]
    assert [*map(without_words_confidence, first + rest)] == [*map(without_words_confidence, whole)]


def without_words_confidence(output: StreamOutput) -> StreamOutput:
    words = output.words and tuple(replace(word, confidence=0.0) for word in output.words)
    return replace(output, confidence_scores=(), words=words)


def test_a_snapshot_of_a_stream_that_has_heard_nothing() -> None:
    engine = make_engine()
    engine.open(stream(1), StreamOptions())
    blob = engine.snapshot(stream(1))
    engine.close(stream(1))
    engine.open(stream(2), StreamOptions(), blob)
    engine.feed(stream(2), speech(GO_FORWARD))
    engine.finish(stream(2))
    assert run_until_idle(engine)[-1].text == "go forward ten meters"


def test_snapshots_of_others_are_refused_and_leave_no_trace() -> None:
    engine = make_engine()
    engine.open(stream(1), StreamOptions())
    engine.feed(stream(1), speech(GO_FORWARD))
    run_until_idle(engine)
    blob = engine.snapshot(stream(1))
    for other in (
        make_engine(replace(CONFIG, context=(70, 6))),
        make_engine(replace(CONFIG, reset_at_end=False)),
        NativeEngine(random_model(), CONFIG),
    ):
        with pytest.raises(SnapshotMismatch):
            other.open(stream(1), StreamOptions(), blob)
        other.check_integrity()
        assert other.stats.open_streams == 0
    for broken in (b"", b"no snapshot", blob[:1_000], blob[:-10]):
        with pytest.raises(SnapshotMismatch):
            engine.open(stream(2), StreamOptions(), broken)
    engine.check_integrity()


def test_a_slot_taken_anew_and_a_stream_closed_midway() -> None:
    engine = make_engine(replace(CONFIG, num_slots=1))
    fresh = transcribe(engine, speech(GO_FORWARD))
    engine.open(stream(2), StreamOptions())
    engine.feed(stream(2), speech(JFK) * np.float32(4))
    engine.step()
    engine.close(stream(2))
    engine.check_integrity()
    again = transcribe(engine, speech(GO_FORWARD))
    assert again == fresh, "to the last bit: same batch, same slot"


def test_the_engine_refuses_what_it_cannot_do() -> None:
    engine = make_engine(replace(CONFIG, num_slots=1))
    with pytest.raises(UnknownStream):
        engine.feed(stream(1), speech(GO_FORWARD))
    engine.open(stream(1), StreamOptions())
    with pytest.raises(ValueError, match="is open"):
        engine.open(stream(1), StreamOptions())
    with pytest.raises(EngineFull):
        engine.open(stream(2), StreamOptions())
    with pytest.raises(ValueError, match="finite"):
        engine.feed(stream(1), np.array([0.0, np.nan], dtype=np.float32))
    with pytest.raises(ValueError, match="float32"):
        engine.feed(stream(1), np.zeros(4))  # type: ignore[arg-type]
    engine.finish(stream(1))
    engine.finish(stream(1))
    with pytest.raises(StreamFinished):
        engine.feed(stream(1), speech(GO_FORWARD))
    assert run_until_idle(engine)[-1].is_final
    with pytest.raises(UnknownStream):
        engine.close(stream(1))
    assert not engine.has_work()
    assert engine.step() == []


def test_absurdly_loud_samples_hurt_nobody_else() -> None:
    engine = make_engine(replace(CONFIG, num_slots=2, page_frames=16))
    engine.open(stream(1), StreamOptions())
    engine.feed(
        stream(1),
        np.full(20_000, 3e38, dtype=np.float32) * np.float32(-1) ** np.arange(20_000, dtype=np.float32),
    )
    engine.open(stream(2), StreamOptions())
    engine.feed(stream(2), speech(GO_FORWARD))
    run_until_idle(engine)
    engine.close(stream(1))
    engine.open(stream(3), StreamOptions())
    engine.feed(stream(3), speech(GO_FORWARD))
    engine.finish(stream(2))
    engine.finish(stream(3))
    finals = {output.stream: output.text for output in run_until_idle(engine) if output.is_final}
    assert finals == {stream(2): "go forward ten meters", stream(3): "go forward ten meters"}


def test_out_of_pages_sheds_the_newest_and_no_other_notices() -> None:
    # A ring is 78 frames, 5 pages of 16; seven pages hold one whole stream and a bit of another.
    engine = make_engine(replace(CONFIG, page_frames=16, num_pages=7))
    samples = speech(JFK)
    for number in (1, 2, 3):
        engine.open(stream(number), StreamOptions())
        engine.feed(stream(number), samples)
        engine.finish(stream(number))
    outputs = run_until_idle(engine)
    failed = [output for output in outputs if output.failed is not None]
    assert [int(output.stream) for output in failed] == [3, 2]
    assert all(isinstance(output.failed, OutOfPages) for output in failed)
    final = next(output for output in outputs if output.is_final)
    assert final.stream == 1
    assert final.text == tiny().tokenizer.decode(offline(JFK, (70, 1)).tokens)
    assert engine.stats.open_streams == 0


def test_out_of_pages_spares_a_newer_stream_that_has_none() -> None:
    engine = make_engine(replace(CONFIG, page_frames=16, num_pages=7))
    for number in (1, 2):
        engine.open(stream(number), StreamOptions())
        engine.feed(stream(number), speech(JFK))
    engine.open(stream(3), StreamOptions())
    outputs = run_until_idle(engine)
    assert [int(output.stream) for output in outputs if output.failed is not None] == [2]
    assert engine.stats.open_streams == 2


def test_a_snapshot_without_pages_for_it_is_refused() -> None:
    engine = make_engine(replace(CONFIG, page_frames=16, num_pages=6))
    engine.open(stream(1), StreamOptions())
    engine.feed(stream(1), speech(JFK))
    run_until_idle(engine)
    with pytest.raises(OutOfPages):
        engine.open(stream(2), StreamOptions(), engine.snapshot(stream(1)))
    engine.check_integrity()
    assert engine.stats.open_streams == 1


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


def test_counters_count_the_work() -> None:
    engine = make_engine(replace(CONFIG, turn_detection=True))
    samples = speech(SHORT_SENTENCE)
    outputs = transcribe(engine, samples)
    stats = engine.stats
    frames = engine.clock.total_frames(len(samples))
    assert stats.encode.units == stats.decode.units == frames
    assert stats.pre_encode.units == len(outputs)
    assert stats.turn_detection.units == len(samples) // 512
    assert stats.tokens == len(tokens_of(outputs))
    assert stats.encode.calls == stats.pre_encode.calls == stats.decode.calls == stats.steps
    assert stats.encode.busy_s > 0
    assert (stats.open_streams, stats.ready_streams, stats.raw_chunks) == (0, 0, 0)


def test_gauges_show_what_waits() -> None:
    engine = make_engine()
    engine.open(stream(1), StreamOptions())
    engine.open(stream(2), StreamOptions())
    engine.feed(stream(1), speech(JFK)[: 1_480 + 2_560])
    engine.feed(stream(2), speech(JFK)[:1_479])
    assert (engine.stats.raw_chunks, engine.stats.ready_streams, engine.stats.open_streams) == (2, 1, 2)
    engine.step()
    assert (engine.stats.raw_chunks, engine.stats.ready_streams, engine.stats.in_flight) == (0, 0, 1)
