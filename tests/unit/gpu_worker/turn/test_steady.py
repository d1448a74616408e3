"""Chunks that change nothing, taken as arrays: what is said is the same as when each is read by itself."""

import numpy as np
import pytest
from numpy.typing import NDArray

from common.entries import StreamId
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.engine.transcript import Tokens, Transcript
from gpu_worker.turn.outcome import WINDOW_SAMPLES
from gpu_worker.turn.settings import TurnSettings
from gpu_worker.turn.stage import TurnStage
from tests.oracle.models import tiny

EOU = tiny().tokenizer.eou_id
NUM_STREAMS = 6
SETTINGS = (
    TurnSettings(),
    TurnSettings(auto_finalize=True, end_silence_ms=320, max_pause_ms=640),
    TurnSettings(vad_threshold=0.8, vad_margin=0.3, min_speech_ms=32, pause_ms=32, eou_silence_ms=32),
)


class Talk:
    """A stream's chunks: speech, pauses of all lengths, doubtful windows, tokens, now and then an <EOU>."""

    def __init__(self, seed: int, chunk_samples: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._chunk_samples = chunk_samples
        self._level, self._left = 0.02, 3
        self.end_sample = 0

    def windows(self, count: int) -> NDArray[np.float32]:
        rng, found = self._rng, np.zeros(count, dtype=np.float32)
        for index in range(count):
            if self._left == 0:
                self._level = float(rng.choice([0.02, 0.02, 0.97, 0.97, 0.97, 0.45]))
                self._left = int(rng.choice([1, 2, 4, 12, 40]))
            self._left -= 1
            found[index] = np.clip(self._level + rng.normal(0, 0.02), 0, 1)
        return found

    def chunk(self) -> tuple[int, NDArray[np.float32], Tokens]:
        rng, begin = self._rng, self.end_sample
        self.end_sample += self._chunk_samples
        count = self.end_sample // WINDOW_SAMPLES - begin // WINDOW_SAMPLES
        ids = rng.integers(5, 400, rng.poisson(0.4)).tolist()
        if EOU is not None and rng.random() < 0.06:
            ids.append(EOU)
        frames = [
            begin // 1_280 + number % max(1, self._chunk_samples // 1_280) for number in range(len(ids))
        ]
        return self.end_sample, self.windows(count), Tokens(ids, sorted(frames), [0.5] * len(ids))


def transcript() -> Transcript:
    return Transcript(tiny().tokenizer, 0.08, with_words=True, with_starts=True)


def open_all(stage: TurnStage, *, slots: bool) -> None:
    for number in range(NUM_STREAMS):
        settings = SETTINGS[number % len(SETTINGS)]
        stage.open(StreamId(number), settings, transcript(), slot=number if slots else None)


def said(outputs: list[StreamOutput]) -> list[list[StreamOutput]]:
    """What clients are told, by stream."""
    return [
        [output for output in outputs if output.stream == number and output.changed]
        for number in range(NUM_STREAMS)
    ]


# Of 320 samples some chunks complete no window.
@pytest.mark.parametrize("chunk_samples", [320, 1_280, 2_560, 17_920])
@pytest.mark.parametrize("row_chunks", [1, 3])
def test_results_are_those_of_chunks_read_one_by_one(chunk_samples: int, row_chunks: int) -> None:
    one_by_one = TurnStage(eou_id=EOU)
    together = TurnStage(eou_id=EOU, num_slots=NUM_STREAMS)
    open_all(one_by_one, slots=False)
    open_all(together, slots=True)
    talks = [Talk(seed, chunk_samples) for seed in range(NUM_STREAMS)]
    expected: list[StreamOutput] = []
    found: list[StreamOutput] = []
    num_chunks = num_taken = 0
    for step in range(600 if chunk_samples < 3_000 else 150):
        rows = [(number, *talks[number].chunk()) for number in range(NUM_STREAMS) for _ in range(row_chunks)]
        for number, end, probs, tokens in rows:
            one_by_one.push(StreamId(number), tokens, end, probs=probs.tolist())
        taken = together.steady.take(
            np.array([number for number, *_ in rows]),
            np.array([end for _, end, _, _ in rows]),
            np.array([len(probs) for _, _, probs, _ in rows]),
            np.concatenate([probs for _, _, probs, _ in rows]),
            np.array([EOU not in tokens.ids for _, _, _, tokens in rows]),
        )
        for (number, end, probs, tokens), is_taken in zip(rows, taken.tolist(), strict=True):
            if not is_taken:
                together.push(StreamId(number), tokens, end, probs=probs.tolist())
            elif tokens.ids:
                together.push_steady(StreamId(number), tokens, end)
        num_chunks, num_taken = num_chunks + len(rows), num_taken + int(taken.sum())
        expected += one_by_one.drain()
        found += together.drain()
        if step % 50 == 49:
            for number in range(NUM_STREAMS):
                exported = one_by_one.export(StreamId(number))
                assert together.export(StreamId(number)) == exported
    for number in range(NUM_STREAMS):
        for stage, outputs in ((one_by_one, expected), (together, found)):
            stage.push(StreamId(number), Tokens((), (), ()), talks[number].end_sample, is_final=True)
            outputs += stage.drain()
    assert said(found) == said(expected)
    events = [output.turn_detection for output in found]
    assert events.count("end_of_utterance") > NUM_STREAMS
    assert 0.02 * num_chunks < num_taken < num_chunks, "the test is of both kinds of chunks"


def test_what_was_taken_is_in_the_snapshot() -> None:
    stage = TurnStage(num_slots=1)
    stage.open(StreamId(0), TurnSettings(), transcript(), slot=0)
    silence = np.full(5, 0.01, dtype=np.float32)
    stage.push(StreamId(0), Tokens((), (), ()), 2_560, probs=silence.tolist())
    stage.push(StreamId(0), Tokens((), (), ()), 5_120, probs=silence.tolist())
    one = (np.array([0]), np.array([7_680]), np.array([5]), silence, np.array([True]))
    assert stage.steady.take(*one).all()
    exported = stage.export(StreamId(0))
    other = TurnStage(num_slots=4)
    other.open(StreamId(9), TurnSettings(), transcript(), exported, slot=3)
    other.push(StreamId(9), Tokens((), (), ()), 10_240, probs=silence.tolist())
    with pytest.raises(ValueError, match="chunks come in order"):
        other.push(StreamId(9), Tokens((), (), ()), 5_120)


def test_a_slot_taken_anew_is_not_steady() -> None:
    stage = TurnStage(num_slots=1)
    silence = np.full(5, 0.01, dtype=np.float32)
    one = (np.array([0]), np.array([2_560]), np.array([5]), silence, np.array([True]))
    stage.open(StreamId(0), TurnSettings(), transcript(), slot=0)
    stage.push(StreamId(0), Tokens((), (), ()), 2_560, probs=silence.tolist())
    assert stage.steady.take(np.array([0]), np.array([5_120]), *one[2:]).all()
    stage.close(StreamId(0))
    stage.open(
        StreamId(1),
        TurnSettings(vad_threshold=0.2, vad_margin=0.1),
        transcript(),
        slot=0,
    )
    assert not stage.steady.take(*one).any()
    stage.push(StreamId(1), Tokens((), (), ()), 2_560, probs=silence.tolist())
    assert [output.last_state for output in stage.drain() if output.stream == 1] == ["silence"]
