"""What every engine keeps, whatever runs its steps: a class to inherit from, one subclass for each of them.

A subclass says how its engine is made (`make`); the tests come with it.  They use the interface of an engine
alone, but for `grow_old`, which moves the counters of a stream, and for the sizes of the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from common.entries import StreamId
from common.options import OPTIONS, StreamOptions, parse_options
from gpu_worker.capacity import measure_capacity
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import (
    EngineError,
    EngineFull,
    SnapshotMismatch,
    StreamFinished,
    StreamOutput,
    UnknownStream,
)
from gpu_worker.engine.slots.samples import Samples
from tests.oracle.models import JFK, speech

SIZES = (1, 160, 700, 2_560, 9_000, 40_000)
WITH_WORDS = StreamOptions(words=True)
Recordings = dict[int, NDArray[np.float32]]


@dataclass(frozen=True)
class Sizes:
    """Of the engine to make.  num_pages: 0 for enough.  turns: whether turns are detected."""

    num_slots: int = 3
    rows: int = 2
    num_pages: int = 0
    turns: bool = False


def as_pcm16(samples: NDArray[np.float32]) -> Samples:
    """The same as a client sends it, where it can be said so."""
    pcm = np.round(np.clip(samples, -2, 2) * 32_768)
    fits = np.array_equal(pcm / np.float32(32_768), samples) and pcm.min(initial=0) >= -32_768
    return pcm.astype(np.int16) if fits and pcm.max(initial=0) <= 32_767 else samples


def step_until_idle(engine: SpeechEngine) -> list[StreamOutput]:
    """All outputs until the engine has nothing to do."""
    outputs: list[StreamOutput] = []
    while engine.has_work():
        outputs += engine.step()
        engine.check_integrity()
    return outputs


def run(
    engine: SpeechEngine, audio: Recordings, seed: int = 0, options: StreamOptions | None = None
) -> dict[int, list[StreamOutput]]:
    """Feed recordings in random pieces, all at once, stepping in between; collect each one's outputs."""
    rng = np.random.default_rng(seed)
    outputs: dict[int, list[StreamOutput]] = {number: [] for number in audio}
    position = dict.fromkeys(audio, 0)
    for number in audio:
        engine.open(StreamId(number), options or StreamOptions())
    while position or engine.has_work():
        for number, first in list(position.items()):
            size = int(rng.choice(SIZES))
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


def told(outputs: Iterable[StreamOutput], stream: int | None = None) -> list[StreamOutput]:
    """What clients see, but for scores, whose last digits depend on the batch."""
    return [
        replace(
            output,
            stream=output.stream if stream is None else StreamId(stream),
            confidence_scores=(),
            words=None if output.words is None else tuple(replace(w, confidence=0.0) for w in output.words),
        )
        for output in outputs
        if output.changed
    ]


def other_options() -> StreamOptions:
    """Every option with another value than its default; of numbers the least.

    Left out are strings that the model has to know and phrases, which have a contract of their own.
    """
    values: dict[str, object] = {}
    for option in OPTIONS:
        if option.kind is bool:
            values[option.name] = True
        elif option.choices:
            values[option.name] = option.choices[-1]
        elif option.minimum is not None and option.kind is not str:
            values[option.name] = int(option.minimum) if option.kind is int else option.minimum
    return parse_options(values)


def grow_old(engine: SpeechEngine, stream: StreamId, frames: int) -> int:
    """Make a stream older by at least so many encoder frames, nothing of it under way; returns its samples.

    What its pages and its ring hold is where it belongs only after whole periods of them.
    """
    engine.samples_decoded(stream)
    slot, table = engine._streams.get(stream).slot, engine._table
    added = engine._folded.period * -(-frames // engine._folded.period)
    samples = added * engine.clock.frame_samples
    table.plan_from(np.array([slot]), table.planned[[slot]] + added)
    table.decoded[slot] += added
    table.fed[slot] += samples
    table.was_fed()
    engine._rings.freed[slot] += samples
    return samples


class EngineContract:
    """Inherit, with `make`."""

    def make(self, sizes: Sizes) -> SpeechEngine:
        """A fresh engine; of the same model whenever it is called."""
        raise NotImplementedError

    def audio(self, number: int, samples: int) -> NDArray[np.float32]:
        """Different speech for each number."""
        name, at = JFK, 7_000 * number
        return speech(name)[at : at + samples]

    def alone(
        self,
        samples: NDArray[np.float32],
        sizes: Sizes,
        options: StreamOptions = WITH_WORDS,
    ) -> list[StreamOutput]:
        """Outputs of a recording that an engine has for itself, fed whole."""
        engine = self.make(sizes)
        engine.open(StreamId(1), options)
        engine.feed(StreamId(1), samples)
        engine.finish(StreamId(1))
        return step_until_idle(engine)

    @pytest.mark.parametrize("turns", [False, True])
    @pytest.mark.parametrize("rows", [1, 3])
    def test_outputs_do_not_depend_on_pieces_mates_or_batches(self, rows: int, turns: bool) -> None:
        audio = {number: self.audio(number, 33_000 + 2_000 * number) for number in (1, 2, 3)}
        sizes = Sizes(rows=rows, turns=turns)
        found = run(self.make(sizes), audio, seed=rows, options=WITH_WORDS)
        for number, samples in audio.items():
            expected = self.alone(samples, sizes)
            assert any(output.token_ids for output in expected)
            assert told(found[number], 1) == told(expected)

    def test_each_stream_has_one_final_which_covers_all_of_it(self) -> None:
        audio = {number: self.audio(number, size) for number, size in ((1, 0), (2, 1), (3, 40_001))}
        for number, outputs in run(self.make(Sizes()), audio).items():
            assert [output.is_final for output in outputs].index(True) == len(outputs) - 1
            assert outputs[-1].samples_decoded == len(audio[number])
            positions = [output.samples_decoded for output in outputs]
            assert positions == sorted(positions)
            frames = [frame for output in outputs for frame in output.token_frames]
            assert frames == sorted(frames)

    @pytest.mark.parametrize("turns", [False, True])
    @pytest.mark.parametrize("num_samples", [0, 1, 199, 200, 1_279, 1_480, 1_640, 2_760, 17_920, 18_120])
    def test_the_shortest_streams_end(self, num_samples: int, turns: bool) -> None:
        outputs = self.alone(self.audio(1, num_samples), Sizes(turns=turns))
        assert [output.is_final for output in outputs].count(True) == 1
        assert outputs[-1].samples_decoded == num_samples

    def test_the_end_changes_nothing_that_was_said_before_it_was_known(self) -> None:
        samples = self.audio(1, 12 * 1_280 + 300)
        engine = self.make(Sizes())
        engine.open(StreamId(1), WITH_WORDS)
        engine.feed(StreamId(1), samples)
        late = step_until_idle(engine)
        engine.finish(StreamId(1))
        assert told(late + step_until_idle(engine)) == told(self.alone(samples, Sizes()))

    def test_every_second_is_acknowledged(self) -> None:
        engine = self.make(Sizes())
        chunk = engine.clock.chunk_samples
        covered = [0, *(output.samples_decoded for output in run(engine, {1: self.audio(1, 70_000)})[1])]
        assert covered[-1] == 70_000
        assert int(np.diff(covered).max()) <= 16_000 + chunk

    @pytest.mark.parametrize("steps", [0, 1, 2, 5])
    @pytest.mark.parametrize("turns", [False, True])
    def test_a_snapshot_goes_on_exactly_and_so_does_its_stream(self, steps: int, turns: bool) -> None:
        self.check_snapshot(steps, turns, WITH_WORDS)

    @pytest.mark.parametrize(("steps", "fed"), [(5, 24_000), (40, 44_000)])
    def test_a_snapshot_has_what_any_option_makes_the_engine_keep(self, steps: int, fed: int) -> None:
        """Within the first utterance, and after its end."""
        self.check_snapshot(steps, True, other_options(), fed)

    def check_snapshot(self, steps: int, turns: bool, options: StreamOptions, fed: int = 24_000) -> None:
        """A stream and its snapshot after so many steps both go on as a stream that has no snapshot.

        fed: samples that the stream has by then.
        """
        sizes, samples, stream = Sizes(turns=turns), self.audio(1, 50_000), StreamId(1)
        whole = told(self.alone(samples, sizes, options=options))
        first, second = self.make(sizes), self.make(replace(sizes, num_slots=4))
        first.open(stream, options)
        first.feed(stream, samples[:fed])
        outputs = [output for _ in range(steps) for output in first.step()]
        taken = first.snapshot(stream)
        position, snapshot = first.samples_decoded(stream), taken.to_bytes()
        assert taken.samples_decoded == position
        assert first.snapshot(stream).to_bytes() == snapshot, "taking one changes nothing"
        # Another slot, other pages, a neighbour in between.
        second.open(StreamId(8), StreamOptions())
        second.feed(StreamId(8), self.audio(5, 20_000))
        step_until_idle(second)
        second.open(stream, options, snapshot)
        assert second.samples_decoded(stream) == position
        second.feed(stream, samples[taken.first_sample :])
        second.finish(stream)
        rest = [output for output in step_until_idle(second) if output.stream == stream]
        assert told(outputs + rest) == whole
        first.feed(stream, samples[fed:])
        first.finish(stream)
        assert told(outputs + step_until_idle(first)) == whole

    def test_what_was_put_in_comes_out_again(self) -> None:
        sizes, stream = Sizes(turns=True), StreamId(1)
        first, second = self.make(sizes), self.make(sizes)
        first.open(stream, StreamOptions())
        first.feed(stream, self.audio(1, 30_000))
        step_until_idle(first)
        taken = first.snapshot(stream)
        snapshot = taken.to_bytes()
        second.open(stream, StreamOptions(), snapshot)
        second.feed(stream, self.audio(1, 30_000)[taken.first_sample : taken.samples_decoded])
        assert told(step_until_idle(second)) == []
        assert second.snapshot(stream).to_bytes() == snapshot

    def test_snapshots_that_do_not_fit_are_refused_and_leave_no_trace(self) -> None:
        engine = self.make(Sizes())
        engine.open(StreamId(1), StreamOptions())
        engine.feed(StreamId(1), self.audio(1, 24_000))
        step_until_idle(engine)
        good = engine.snapshot(StreamId(1)).to_bytes()
        for broken in (
            b"",
            b"nothing",
            good[:20],
            good[:-1],
            good + b"\0",
            b"PXS3\xff\xff\xff\xff" + good[8:],
        ):
            with pytest.raises(SnapshotMismatch):
                engine.open(StreamId(2), StreamOptions(), broken)
            engine.check_integrity()
        assert engine.stats.open_streams == 1

    def test_an_ended_stream_has_no_snapshot(self) -> None:
        engine = self.make(Sizes())
        engine.open(StreamId(1), StreamOptions())
        engine.finish(StreamId(1))
        engine.step()
        with pytest.raises(EngineError):
            engine.snapshot(StreamId(1))
        step_until_idle(engine)

    def test_a_slot_taken_anew_holds_nothing_of_its_last_stream(self) -> None:
        sizes = Sizes(num_slots=1, rows=1)
        engine, samples = self.make(sizes), self.audio(1, 30_000)
        expected = told(self.alone(samples, sizes, options=StreamOptions()))
        engine.open(StreamId(7), StreamOptions())
        engine.feed(StreamId(7), self.audio(4, 50_000))
        engine.step()
        engine.step()
        # A step of the old stream may be under way when the new one takes its slot.
        engine.close(StreamId(7))
        engine.check_integrity()
        assert told(run(engine, {1: samples}, seed=4)[1]) == expected

    def test_streams_that_come_and_go_without_a_step_leave_nothing(self) -> None:
        """An idle worker: of no stream a first chunk comes."""
        engine, samples = self.make(Sizes(num_slots=2)), self.audio(1, 30_000)
        for _ in range(20):
            engine.open(StreamId(1), StreamOptions())
            engine.feed(StreamId(1), np.zeros(100, np.int16))
            assert list(engine.step()) == []
            engine.close(StreamId(1))
        assert len(engine._fresh) <= engine.capacity
        expected = told(self.alone(samples, Sizes(), options=StreamOptions()))
        assert told(run(engine, {1: samples})[1]) == expected
        assert not engine._fresh

    def test_streams_that_wait_are_served_in_turn(self) -> None:
        """One in each step: nobody is served twice before all others were."""
        engine = self.make(Sizes(num_slots=4, rows=1))
        ends = {StreamId(number): self.audio(number, 20_000) for number in (1, 2, 3, 4)}
        for stream, samples in ends.items():
            engine.open(stream, StreamOptions())
            engine.feed(stream, samples)
        decoded = dict.fromkeys(ends, 0)
        for _ in range(4 + engine.steps.shape.overlaps):
            engine.step()
        for stream in ends:
            decoded[stream] = engine.samples_decoded(stream)
        assert min(decoded.values()) > 0

    @pytest.mark.parametrize(
        ("call", "error"),
        [
            (lambda engine: engine.open(StreamId(1), StreamOptions()), ValueError),
            (lambda engine: engine.feed(StreamId(9), np.zeros(1, dtype=np.float32)), UnknownStream),
            (lambda engine: engine.finish(StreamId(9)), UnknownStream),
            (lambda engine: engine.close(StreamId(9)), UnknownStream),
            (lambda engine: engine.snapshot(StreamId(9)), UnknownStream),
            (lambda engine: engine.feed(StreamId(1), np.full(5, np.nan, dtype=np.float32)), ValueError),
            (lambda engine: engine.feed(StreamId(1), np.full(5, np.inf, dtype=np.float32)), ValueError),
            (lambda engine: engine.feed(StreamId(1), np.zeros(5)), ValueError),
            (lambda engine: engine.feed(StreamId(1), np.zeros((2, 5), dtype=np.int16)), ValueError),
            (lambda engine: engine.feed(StreamId(2), np.zeros(5, dtype=np.float32)), StreamFinished),
            (lambda engine: engine.feed(StreamId(2), np.zeros(5, dtype=np.int16)), StreamFinished),
            (lambda engine: engine.open(StreamId(4), StreamOptions()), EngineFull),
        ],
    )
    def test_refusals_leave_the_engine_sound(
        self, call: Callable[[SpeechEngine], Any], error: type[Exception]
    ) -> None:
        engine = self.make(Sizes())
        for number in (1, 2, 3):
            engine.open(StreamId(number), StreamOptions())
        engine.finish(StreamId(2))
        engine.finish(StreamId(2))
        with pytest.raises(error):
            call(engine)
        engine.check_integrity()
        assert [output.stream for output in step_until_idle(engine)] == [2]
        assert not engine.has_work()
        assert list(engine.step()) == []

    def test_absurdly_loud_samples_hurt_nobody_else(self) -> None:
        sizes, samples = Sizes(), self.audio(1, 30_000)
        expected = told(self.alone(samples, sizes, options=StreamOptions()))
        engine = self.make(sizes)
        loud = np.tile(np.array([3e38, -3e38, 0.5], dtype=np.float32), 8_000)
        found = run(engine, {2: loud, 1: samples})
        assert told(found[1]) == expected
        assert told(run(engine, {1: samples}, seed=1)[1]) == expected

    @pytest.mark.parametrize("frames", [1 << 18, (1 << 30) // 1_280, 1 << 31, 1 << 40])
    def test_no_stream_goes_deaf_or_wraps_at_any_age(self, frames: int) -> None:
        """After hours, after 18.6 hours, where a sample number leaves int32, and long after."""
        sizes, stream = Sizes(num_slots=1, rows=1), StreamId(1)
        engine, samples = self.make(sizes), speech(JFK)[:150_000]
        # Its left context is full by then: only such a stream is like an older one.
        engine.open(stream, StreamOptions())
        engine.feed(stream, samples[:121_111])
        young = step_until_idle(engine)
        taken = engine.snapshot(stream)
        snapshot = taken.to_bytes()
        engine.feed(stream, samples[121_111:])
        engine.finish(stream)
        expected = told(young + step_until_idle(engine))
        old = self.make(sizes)
        old.open(stream, StreamOptions(), snapshot)
        fed = old.samples_decoded(stream)
        old.feed(stream, samples[taken.first_sample : fed])
        assert told(step_until_idle(old)) == []
        older = grow_old(old, stream, frames)
        assert old.samples_decoded(stream) == fed + older
        old.feed(stream, samples[fed:])
        old.finish(stream)
        found = told(young + step_until_idle(old))
        assert [output.token_ids for output in found] == [output.token_ids for output in expected]
        assert found[-1].text == expected[-1].text
        assert found[-1].samples_decoded == len(samples) + older
        last = expected[-1].token_frames or expected[-2].token_frames
        told_last = found[-1].token_frames or found[-2].token_frames
        assert [frame - older // engine.clock.frame_samples for frame in told_last] == list(last)

    def test_the_whole_length_counts_for_every_age(self) -> None:
        """What the steps are told of frames is the same for ever, and differs from the truth by periods."""
        folded = self.make(Sizes())._folded
        frames = np.array([0, 1, 2 * folded.period - 1, 2 * folded.period, 5 * folded.period + 7, 1 << 50])
        told_frames = folded.fold(frames)
        assert ((frames - told_frames) % folded.period == 0).all()
        assert told_frames.max() < 2 * folded.period
        assert (told_frames[:3] == frames[:3]).all()
        assert (told_frames[3:] >= folded.period).all()

    @pytest.mark.parametrize("turns", [False, True])
    def test_measuring_what_it_carries_leaves_no_trace(self, turns: bool) -> None:
        sizes, samples = Sizes(turns=turns), self.audio(1, 30_000)
        engine = self.make(sizes)
        run(engine, {1: samples})
        before = engine.stats.copied()
        capacity = measure_capacity(engine, 0.05)
        assert capacity is not None
        assert 1 <= capacity.num_measured <= sizes.num_slots
        assert capacity.step_s > 0
        assert engine.stats == before
        assert not engine.has_work()
        engine.check_integrity()
        found = run(engine, {1: samples, 2: samples, 3: samples})
        for number in found:
            assert told(found[number], 1) == told(self.alone(samples, sizes, options=StreamOptions()))
        with pytest.raises(UnknownStream):
            engine.close(StreamId(-2))

    def test_counters_count_the_work(self) -> None:
        engine = self.make(Sizes(turns=True))
        samples = self.audio(1, 47_000)
        outputs = run(engine, {1: samples})[1]
        stats, clock = engine.stats, engine.clock
        frames = clock.total_frames(len(samples))
        assert stats.encode.units == stats.decode.units == frames
        assert stats.pre_encode.units == clock.whole_chunks(len(samples)) + 1
        assert stats.turn_detection.units == len(samples) // 512
        assert stats.tokens == sum(len(output.token_ids) for output in outputs)
        assert stats.steps > 0
        assert stats.encode.calls > 0
        assert stats.encode.busy_s > 0
        assert (stats.open_streams, stats.ready_streams) == (0, 0)
