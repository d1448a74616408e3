"""What every engine with phrase boosting keeps, whatever runs its steps: a class to inherit from."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from common.entries import StreamId
from common.options import StreamOptions
from common.phrases import Phrase
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import EngineError, PhrasesFull, StreamOutput, UnsupportedOption
from tests.contracts.engine_contract import Recordings, Sizes, step_until_idle, told
from tests.oracle.models import JFK, speech, tiny

STREAM = StreamId(1)


def phrases_of(seed: int, count: int = 30, boost: float = 6.0) -> tuple[Phrase, ...]:
    """Phrases of the vocabulary's own pieces, boosted so that a random model says other things."""
    rng = np.random.default_rng(seed)
    tokenizer = tiny().tokenizer
    tokens = rng.integers(1, tokenizer.vocab_size - 1, (count, 3)).tolist()
    words = [tokenizer.decode(three) for three in tokens]
    return tuple(Phrase(" ".join(word.split()), boost) for word in words if word)


def tokens_of(outputs: list[StreamOutput], stream: StreamId = STREAM) -> list[int]:
    return [token for output in outputs if output.stream == stream for token in output.token_ids]


class PhraseContract:
    """Inherit, with `make`."""

    def make(self, sizes: Sizes) -> SpeechEngine:
        """A fresh engine; of the same model whenever it is called."""
        raise NotImplementedError

    def recording(self, number: int, samples: int = 50_000) -> NDArray[np.float32]:
        return speech(JFK)[7_000 * number : 7_000 * number + samples]

    def boosted(
        self,
        samples: NDArray[np.float32],
        phrases: tuple[Phrase, ...],
        changes: tuple[tuple[int, tuple[Phrase, ...]], ...] = (),
    ) -> list[StreamOutput]:
        """Outputs of a recording that an engine has for itself, with lists that come at some samples."""
        engine = self.make(Sizes())
        engine.open(STREAM, StreamOptions(phrases=phrases))
        at, outputs = 0, []
        for sample, others in changes:
            engine.feed(STREAM, samples[at:sample])
            engine.replace_phrases(STREAM, others, sample)
            at = sample
        engine.feed(STREAM, samples[at:])
        engine.finish(STREAM)
        outputs += step_until_idle(engine)
        return outputs

    def test_phrases_change_what_is_said_and_confidences_stay_those_of_the_model(self) -> None:
        samples = self.recording(1)
        without, with_them = self.boosted(samples, ()), self.boosted(samples, phrases_of(1))
        assert tokens_of(without) != tokens_of(with_them)
        assert tokens_of(without) == tokens_of(self.boosted(samples, (Phrase("hello", 0.0),)))
        first = next(output for output in without if output.token_ids)
        boosted = next(output for output in with_them if output.token_ids)
        # Up to the first token both have heard the same.
        assert boosted.token_frames[0] == first.token_frames[0]
        assert boosted.confidence_scores[0] == pytest.approx(first.confidence_scores[0], abs=1e-5)

    def test_what_a_stream_says_does_not_depend_on_its_mates(self) -> None:
        audio: Recordings = {number: self.recording(number) for number in (1, 2, 3)}
        lists = {1: phrases_of(1), 2: (), 3: phrases_of(3)}
        change = (26_000, phrases_of(4))
        expected = {
            number: told(self.boosted(audio[number], lists[number], (change,)), 0) for number in audio
        }
        rng = np.random.default_rng(0)
        for rows in (1, 2, 3):
            engine = self.make(Sizes(rows=rows))
            outputs: dict[int, list[StreamOutput]] = {number: [] for number in audio}
            position = dict.fromkeys(audio, 0)
            for number in audio:
                engine.open(StreamId(number), StreamOptions(phrases=lists[number]))
            while position or engine.has_work():
                for number, first in list(position.items()):
                    end = first + int(rng.integers(1, 9_000))
                    if first < change[0] <= end:
                        end = change[0]
                    engine.feed(StreamId(number), audio[number][first:end])
                    if end == change[0]:
                        engine.replace_phrases(StreamId(number), change[1], end)
                    position[number] = end
                    if end >= len(audio[number]):
                        engine.finish(StreamId(number))
                        del position[number]
                for output in engine.step():
                    outputs[output.stream].append(output)
                engine.check_integrity()
            assert {number: told(found, 0) for number, found in outputs.items()} == expected

    def test_a_change_holds_from_the_first_chunk_behind_its_sample(self) -> None:
        samples, old, new = self.recording(2), phrases_of(1), phrases_of(2)
        engine = self.make(Sizes())
        chunk = engine.clock.chunk_samples
        for chunks in (0, 1, 3):
            at_border = self.boosted(samples, old, ((chunks * chunk, new),))
            earlier = self.boosted(samples, old, ((max(0, (chunks - 1) * chunk + 1), new),))
            assert told(earlier) == told(at_border)
            frame = chunks * engine.clock.chunk_frames
            before = [
                token
                for output in self.boosted(samples, old)
                for token, at in zip(output.token_ids, output.token_frames, strict=True)
                if at < frame
            ]
            assert tokens_of(at_border)[: len(before)] == before
        assert told(self.boosted(samples, old, ((0, new),))) == told(self.boosted(samples, new))
        assert told(self.boosted(samples, old, ((30_000, new), (30_000, ())))) == told(
            self.boosted(samples, old, ((30_000, ()),))
        )
        too_late = self.boosted(samples, old, ((len(samples), new),))
        assert told(too_late) == told(self.boosted(samples, old))

    @pytest.mark.parametrize("steps", [0, 1, 2, 5])
    @pytest.mark.parametrize("change_at", [None, 9_000, 24_000])
    def test_a_snapshot_goes_on_exactly(self, steps: int, change_at: int | None) -> None:
        samples, old, new = self.recording(1), phrases_of(1), phrases_of(2)
        changes = () if change_at is None else ((change_at, new),)
        whole = told(self.boosted(samples, old, changes))
        first, second = self.make(Sizes()), self.make(Sizes(num_slots=4))
        first.open(STREAM, StreamOptions(phrases=old))
        first.feed(STREAM, samples[: change_at or 24_000])
        if change_at is not None:
            first.replace_phrases(STREAM, new, change_at)
            first.feed(STREAM, samples[change_at:24_000])
        outputs = [output for _ in range(steps) for output in first.step()]
        taken = first.snapshot(STREAM)
        snapshot = taken.to_bytes()
        assert first.snapshot(STREAM).to_bytes() == snapshot
        # Another slot and another place in the arena.
        second.open(StreamId(8), StreamOptions(phrases=phrases_of(9)))
        second.feed(StreamId(8), self.recording(3, 20_000))
        step_until_idle(second)
        second.open(STREAM, StreamOptions(phrases=old), snapshot)
        at = taken.first_sample
        if change_at is not None and at <= change_at:
            # A replay repeats what the snapshot may have already.
            second.feed(STREAM, samples[at:change_at])
            second.replace_phrases(STREAM, new, change_at)
            at = change_at
        second.feed(STREAM, samples[at:])
        second.finish(STREAM)
        rest = [output for output in step_until_idle(second) if output.stream == STREAM]
        assert told(outputs + rest) == whole
        first.feed(STREAM, samples[24_000:])
        first.finish(STREAM)
        assert told(outputs + step_until_idle(first)) == whole

    def test_a_hundred_lists_come_and_go(self) -> None:
        engine = self.make(Sizes(num_slots=8, rows=4))
        rng = np.random.default_rng(3)
        open_streams: list[StreamId] = []
        for number in range(100):
            stream = StreamId(number)
            if len(open_streams) == 8:
                engine.close(open_streams.pop(int(rng.integers(8))))
            engine.open(
                stream, StreamOptions(phrases=phrases_of(int(rng.integers(40)), int(rng.integers(1, 60))))
            )
            open_streams.append(stream)
            engine.feed(stream, self.recording(number % 5, int(rng.integers(1, 9_000))))
            if rng.integers(2):
                at = int(rng.integers(0, 20_000))
                engine.replace_phrases(
                    stream, phrases_of(int(rng.integers(40))) if rng.integers(4) else (), at
                )
            assert all(output.failed is None for output in engine.step())
            engine.check_integrity()
        for stream in open_streams:
            engine.close(stream)
        engine.check_integrity()
        # After all that, a stream says what it says in a fresh engine.
        samples = self.recording(1)
        engine.open(STREAM, StreamOptions(phrases=phrases_of(1)))
        engine.feed(STREAM, samples)
        engine.finish(STREAM)
        assert told(step_until_idle(engine)) == told(self.boosted(samples, phrases_of(1)))

    def test_equal_lists_are_one(self) -> None:
        engine = self.make(Sizes(num_slots=3))
        for number in (1, 2, 3):
            engine.open(StreamId(number), StreamOptions(phrases=phrases_of(1)))
        step_until_idle(engine)
        assert engine.book.num_lists == 1
        for number in (1, 2):
            engine.close(StreamId(number))
        assert engine.book.num_lists == 1
        engine.close(StreamId(3))
        assert engine.book.num_lists == 0

    def fails(
        self, engine: SpeechEngine, phrases: tuple[Phrase, ...], error: type[EngineError]
    ) -> StreamOutput:
        """Open a stream that fails, beside one that does not notice."""
        samples = self.recording(1, 30_000)
        engine.open(STREAM, StreamOptions())
        engine.feed(STREAM, samples)
        engine.open(StreamId(2), StreamOptions(phrases=phrases))
        engine.feed(StreamId(2), samples)
        engine.finish(STREAM)
        outputs = step_until_idle(engine)
        (last,) = [output for output in outputs if output.stream == 2]
        assert isinstance(last.failed, error)
        assert told(output for output in outputs if output.stream == STREAM) == told(
            self.boosted(samples, ())
        )
        assert engine.stats.open_streams == 0
        return last

    def test_what_the_model_cannot_write_ends_that_stream_and_names_the_phrase(self) -> None:
        last = self.fails(self.make(Sizes()), (Phrase("hello"), Phrase("Москва")), UnsupportedOption)
        assert "Москва" in str(last.failed)
        assert "hello" not in str(last.failed)

    def test_a_bad_change_ends_the_stream_behind_all_that_was_heard_before(self) -> None:
        samples = self.recording(1)
        expected = self.boosted(samples, ())
        engine = self.make(Sizes())
        chunks = 20_000 // engine.clock.chunk_samples
        frames = chunks * engine.clock.chunk_frames
        engine.open(STREAM, StreamOptions())
        engine.feed(STREAM, samples)
        engine.replace_phrases(STREAM, (Phrase("Москва"),), chunks * engine.clock.chunk_samples)
        outputs = step_until_idle(engine)
        assert isinstance(outputs[-1].failed, UnsupportedOption)
        before = [
            token
            for output in expected
            for token, at in zip(output.token_ids, output.token_frames, strict=True)
            if at < frames
        ]
        assert before
        assert tokens_of(outputs) == before

    def test_a_full_arena_is_that_streams_error_alone(self) -> None:
        engine = self.make(Sizes())
        last = self.fails(engine, phrases_of(5, 20_000), PhrasesFull)
        assert "--phrase-memory-mb" in str(last.failed)
        engine.open(STREAM, StreamOptions(phrases=phrases_of(1)))
        engine.feed(STREAM, self.recording(1))
        engine.finish(STREAM)
        assert told(step_until_idle(engine)) == told(self.boosted(self.recording(1), phrases_of(1)))
