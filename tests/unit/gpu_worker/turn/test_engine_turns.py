"""Turns through the whole engine: one stream's results do not depend on mates, message sizes or process."""

import random
import wave
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import StreamOutput
from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.model.loading.checkpoint import load_model
from gpu_worker.steps.factory import make_model_engine
from gpu_worker.turn.outcome import Verdict
from gpu_worker.turn.settings import Signal, TurnSettings
from gpu_worker.turn.stage import TurnAnswer
from tests.device.overlapping_steps import OverlappingSteps
from tests.oracle.loudness_judge import LoudnessJudge

RECORDING = Path(__file__).parents[4] / "parakeet" / "recordings" / "jfk.wav"
STREAM = StreamId(1_000)
NUM_MATES = 64
MAX_STEPS = 2_000
SETTINGS = TurnSettings(signals=frozenset(Signal), end_silence_ms=320, max_pause_ms=640, auto_finalize=True)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(None, size="tiny")


@pytest.fixture(scope="module")
def speech() -> NDArray[np.float32]:
    """Four seconds with pauses in them, then silence."""
    with wave.open(str(RECORDING)) as recording:
        pcm = np.frombuffer(recording.readframes(4 * 16_000), np.int16)
    return np.concatenate([pcm, np.zeros(14_000, np.int16)]).astype(np.float32) / np.float32(32_768)


class HeedlessJudge(LoudnessJudge):
    """Answers what was asked of a stream that is dropped all the same, to nobody."""

    def drop(self, stream: StreamId) -> None:
        pass


def make_engine(loaded: LoadedModel) -> SpeechEngine:
    config = EngineConfig(
        num_slots=NUM_MATES + 1,
        batch_sizes=BatchSizes(32, 32, 32),
        turn_settings=lambda _: SETTINGS,
    )
    return make_model_engine(loaded, config, judge=HeedlessJudge())


def parts(samples: NDArray[np.float32], sizes: Iterator[int]) -> Iterator[NDArray[np.float32]]:
    position = 0
    while position < len(samples):
        size = next(sizes)
        yield samples[position : position + size]
        position += size


def endless(rng: random.Random, low: int, high: int) -> Iterator[int]:
    while True:
        yield rng.randint(low, high)


def run(
    engine: SpeechEngine, audio: dict[StreamId, NDArray[np.float32]], rng: random.Random, low: int, high: int
) -> list[StreamOutput]:
    """Feeds all streams in messages of random sizes, a step after each round; return STREAM's outputs."""
    feeds = {stream: parts(samples, endless(rng, low, high)) for stream, samples in audio.items()}
    for stream in audio:
        engine.open(stream, StreamOptions())
    outputs: list[StreamOutput] = []
    for _ in range(MAX_STEPS):
        for stream in list(feeds):
            part = next(feeds[stream], None)
            if part is None:
                del feeds[stream]
                engine.finish(stream)
            else:
                engine.feed(stream, part)
        outputs += [output for output in engine.step() if output.stream == STREAM]
        if outputs and outputs[-1].is_final:
            return outputs
    raise AssertionError("the stream did not end")


@pytest.fixture(scope="module")
def alone(loaded: LoadedModel, speech: NDArray[np.float32]) -> list[StreamOutput]:
    return run(make_engine(loaded), {STREAM: speech}, random.Random(1), 2_560, 2_560)


def test_there_are_turns_to_compare(alone: list[StreamOutput]) -> None:
    said = [output.turn_detection for output in alone]
    assert said.count("end_of_utterance") >= 2
    assert {"start_of_utterance", "running", "pause"} <= set(said)
    assert {output.last_state for output in alone} == {"speech", "silence"}
    assert sum(len(output.utterances) for output in alone) == said.count("end_of_utterance")


@pytest.mark.parametrize(("low", "high"), [(160, 1_600), (1, 48_000), (70_000, 90_000)])
def test_turns_do_not_depend_on_message_sizes(
    loaded: LoadedModel,
    speech: NDArray[np.float32],
    alone: list[StreamOutput],
    low: int,
    high: int,
) -> None:
    got = run(make_engine(loaded), {STREAM: speech}, random.Random(low), low, high)
    assert [turns(output) for output in got] == [turns(output) for output in alone]


def test_turns_do_not_depend_on_64_others(
    loaded: LoadedModel, speech: NDArray[np.float32], alone: list[StreamOutput]
) -> None:
    rng = random.Random(2)
    audio = {STREAM: speech}
    for mate in range(NUM_MATES):
        start = rng.randrange(len(speech) - 20_000)
        audio[StreamId(mate)] = speech[start : start + rng.randint(4_000, 40_000)] * np.float32(
            rng.uniform(0.2, 1.0)
        )
    got = run(make_engine(loaded), audio, rng, 800, 8_000)
    assert [turns(output) for output in got] == [turns(output) for output in alone]


def test_turns_go_on_in_another_process(
    loaded: LoadedModel, speech: NDArray[np.float32], alone: list[StreamOutput]
) -> None:
    """A snapshot after every few steps, each time into an engine made anew, verdicts open or not."""
    engine = make_engine(loaded)
    engine.open(STREAM, StreamOptions())
    outputs: list[StreamOutput] = []
    fed = 0
    for step in range(MAX_STEPS):
        if fed < len(speech):
            engine.feed(STREAM, speech[fed : fed + 2_560])
            fed = min(fed + 2_560, len(speech))
            if fed == len(speech):
                engine.finish(STREAM)
        outputs += engine.step()
        if outputs and outputs[-1].is_final:
            break
        if step % 5 == 4 and fed < len(speech):
            snapshot = engine.snapshot(STREAM).to_bytes()
            fed = engine.samples_decoded(STREAM)
            engine = make_engine(loaded)
            engine.open(STREAM, StreamOptions(), snapshot)
    assert [turns(output) for output in outputs] == [turns(output) for output in alone]


class SlowJudge:
    """Takes every question and answers none before it is told to."""

    timeout_s = 60.0

    def __init__(self) -> None:
        self.asked: list[tuple[StreamId, int]] = []
        self._ready: list[TurnAnswer] = []

    def ask(self, stream: StreamId, number: int, audio: NDArray[np.int16]) -> bool:
        self.asked.append((stream, number))
        return True

    def answer_all(self) -> None:
        self._ready += [TurnAnswer(stream, number, Verdict.INCOMPLETE) for stream, number in self.asked]
        self.asked.clear()

    def answers(self) -> Sequence[TurnAnswer]:
        ready, self._ready = self._ready, []
        return ready

    def count_late(self) -> None:
        raise AssertionError("nothing is late here")

    def drop(self, stream: StreamId) -> None:
        self.asked = [(other, number) for other, number in self.asked if other != stream]


@pytest.mark.parametrize("overlaps", [False, True])
def test_a_stream_waits_for_its_verdict_and_no_other_does(
    loaded: LoadedModel, speech: NDArray[np.float32], *, overlaps: bool
) -> None:
    """An upload beside a live stream, and a judge that is busy: the upload stands, the other goes on."""
    settings = {
        True: replace(SETTINGS, signals=frozenset({Signal.SMART_TURN})),
        False: replace(SETTINGS, signals=frozenset({Signal.VAD})),
    }
    config = EngineConfig(num_slots=2, turn_settings=lambda options: settings[bool(options.words)])
    judge = SlowJudge()
    engine = make_model_engine(loaded, config, judge=judge)
    if overlaps:
        steps = OverlappingSteps(engine.steps)
        engine = SpeechEngine(steps, loaded.tokenizer, turns_of=config.turn_settings, judge=judge)
    upload, live = STREAM, StreamId(1)
    engine.open(upload, StreamOptions(words=True))
    engine.open(live, StreamOptions())
    engine.feed(upload, np.tile(speech, 4))
    engine.finish(upload)

    def work() -> list[StreamOutput]:
        outputs: list[StreamOutput] = []
        while engine.has_work():
            outputs += engine.step()
            engine.check_integrity()
        return outputs

    outputs = work()
    assert judge.asked, "the upload has come to a pause"
    stood = engine.samples_decoded(upload)
    assert stood < len(speech), "nothing more of it is decoded"
    assert engine.stats.turn_detection_streams == 1
    for first in range(0, 32_000, 2_560):
        engine.feed(live, speech[first : first + 2_560])
        outputs += work()
    assert max(output.samples_decoded for output in outputs if output.stream == live) > 28_000
    assert engine.samples_decoded(upload) == stood
    while judge.asked:
        judge.answer_all()
        outputs += work()
    mine = [output for output in outputs if output.stream == upload]
    assert mine[-1].is_final
    assert mine[-1].samples_decoded == 4 * len(speech)
    assert [o.samples_decoded for o in mine] == sorted(o.samples_decoded for o in mine)


def answered(
    loaded: LoadedModel, speech: NDArray[np.float32], *, short_of_pages: bool = False
) -> SpeechEngine:
    """An engine in which STREAM has waited for a verdict; it has come, and results of its audio with it.

    short_of_pages: no page is left, and another stream needs one for its next step.
    """
    settings = replace(SETTINGS, signals=frozenset({Signal.SMART_TURN}))
    judge, mate, frames = SlowJudge(), StreamId(1), 8
    engine = make_model_engine(
        loaded,
        EngineConfig(num_slots=2, page_frames=frames, num_pages=12, turn_settings=lambda _: settings),
        judge=judge,
    )

    def work() -> None:
        while engine.has_work():
            assert not any(output.failed for output in engine.step())

    engine.open(mate, StreamOptions(turn_detection=False))
    engine.open(STREAM, StreamOptions())
    engine.feed(STREAM, speech)
    work()
    assert judge.asked
    while short_of_pages and engine._blocks.num_free:
        engine.feed(mate, np.zeros(frames * 1_280, np.int16))
        work()
    if short_of_pages:
        engine.feed(mate, np.zeros(frames * 1_280, np.int16))
    judge.answer_all()
    assert engine.has_work()
    return engine


def test_a_closed_stream_has_no_results_of_a_verdict_that_came_just_before(
    loaded: LoadedModel, speech: NDArray[np.float32]
) -> None:
    engine = answered(loaded, speech)
    engine.close(STREAM)
    engine.open(STREAM, StreamOptions())
    assert list(engine.step()) == []


def test_a_stream_that_is_shed_has_its_results_before_that(
    loaded: LoadedModel, speech: NDArray[np.float32]
) -> None:
    """A verdict comes, and in the same step the pages run out: the failure is the last that is said."""
    engine = answered(loaded, speech, short_of_pages=True)
    outputs = [output for output in engine.step() if output.stream == STREAM]
    assert [output.failed is not None for output in outputs].index(True) == len(outputs) - 1 > 0


@pytest.mark.parametrize("chunk_ms", [80, 160, 560, 1_120])
@pytest.mark.parametrize("gap_ms", [320, 700, 1_200])
def test_each_of_two_phrases_has_its_own_words_in_its_final(
    loaded: LoadedModel, chunk_ms: int, gap_ms: int
) -> None:
    """With the trained model: the words that begin before the second phrase, and no other."""
    first, second = recording("goforward.wav"), recording("sense_and_sensibility_01_austen_64kb-0880.wav")
    settings = TurnSettings(auto_finalize=True, end_silence_ms=500)
    config = EngineConfig(
        num_slots=1,
        context=loaded.config.context_for_chunk(chunk_ms),
        turn_settings=lambda _: settings,
    )
    engine = make_model_engine(loaded, config)
    engine.open(STREAM, StreamOptions(words=True))
    # The recordings have some silence at their ends, which counts towards the gap.
    engine.feed(STREAM, np.concatenate([first, np.zeros(gap_ms * 16, np.float32), second]))
    engine.finish(STREAM)
    outputs: list[StreamOutput] = []
    while engine.has_work():
        outputs += engine.step()
    utterances = [one for output in outputs for one in output.utterances]
    words = [word for output in outputs for word in output.words or ()]
    border_s = (len(first) + gap_ms * 16) / 16_000
    before = [one.text for one in utterances if one.end_s < border_s]
    assert before, "the gap divides them"
    assert " ".join(before).split() == [word.word for word in words if word.start_s < border_s]
    assert " ".join(one.text for one in utterances) == outputs[-1].text
    names = [output.turn_detection for output in outputs if output.turn_detection.endswith("_utterance")]
    assert names == ["start_of_utterance", "end_of_utterance"] * len(utterances)


def recording(name: str) -> NDArray[np.float32]:
    with wave.open(str(RECORDING.with_name(name))) as wav:
        pcm = np.frombuffer(wav.readframes(wav.getnframes()), np.int16)
    return pcm.astype(np.float32) / np.float32(32_768)


def turns(output: StreamOutput) -> tuple[object, ...]:
    return (
        output.samples_decoded,
        output.last_state,
        output.turn_detection,
        output.is_turn_event,
        output.changed,
        output.token_ids,
        output.text,
        output.utterances,
    )
