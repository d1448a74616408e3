"""Streams with phrases and turns whose engines crash: what they say is what each says alone, undisturbed.

After a crash a stream goes on from its last snapshot, in another slot, beside others: its audio and its
changes of phrases since then come again, some of them from before the snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from random import Random

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.entries import StreamId
from common.options import StreamOptions
from common.phrases import Phrase
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import EngineError, StreamOutput
from gpu_worker.engine.phrases.book import PhraseBook
from gpu_worker.steps.factory import make_model_engine
from gpu_worker.turn.settings import Signal, TurnSettings
from tests.contracts.engine_contract import as_pcm16, told
from tests.contracts.phrase_contract import phrases_of
from tests.device.overlapping_steps import OverlappingSteps
from tests.oracle.loudness_judge import LoudnessJudge
from tests.oracle.models import JFK, random_model, speech

SLOTS = 3
LISTS: tuple[tuple[Phrase, ...], ...] = ((), phrases_of(1), phrases_of(3))
MODEL = {"num_layers": 1}


@dataclass(frozen=True)
class Setting:
    """What all engines of a trial have in common."""

    context: tuple[int, int]
    page_frames: int
    audio_snapshots: bool
    signals: frozenset[Signal]

    def turns_of(self, options: StreamOptions) -> TurnSettings:
        return TurnSettings(
            signals=self.signals,
            end_silence_ms=320,
            max_pause_ms=640,
            auto_finalize=options.auto_finalize,
        )

    def engine(self, rows: int, step_frames: int, delay: int, *, overlaps: bool) -> SpeechEngine:
        loaded = random_model(2, **MODEL)
        config = EngineConfig(
            num_slots=SLOTS,
            context=self.context,
            page_frames=self.page_frames,
            batch_sizes=BatchSizes(rows, rows, rows),
            max_step_frames=step_frames,
            audio_snapshots=self.audio_snapshots,
        )
        made = make_model_engine(loaded, config)
        steps = OverlappingSteps(made.steps) if overlaps else made.steps
        book = PhraseBook(steps.trees, made.book._make_tree)
        return SpeechEngine(
            steps, loaded.tokenizer, turns_of=self.turns_of, judge=LoudnessJudge(delay), book=book
        )


@dataclass
class Played:
    """A stream: its audio, the lists that come at some samples, and what came of it so far."""

    number: int
    audio: NDArray[np.float32]
    options: StreamOptions
    changes: list[tuple[int, tuple[Phrase, ...]]]
    fed: int = 0
    outputs: list[StreamOutput] = field(default_factory=list)
    saved: tuple[bytes, int, int] | None = None
    """A snapshot, its first sample, and the number of outputs before it."""

    @property
    def name(self) -> StreamId:
        return StreamId(self.number)

    @property
    def is_whole(self) -> bool:
        return self.fed == len(self.audio)

    def feed(self, engine: SpeechEngine, rng: Random, first: int, end: int, *, again: bool = False) -> None:
        """Feed samples, in pieces, and the changes among them; `again`: also those at the first sample."""
        changes = [
            one for one in self.changes if (first <= one[0] if again else first < one[0]) and one[0] <= end
        ]
        for sample, phrases in [*changes, (end, None)]:
            for piece in _pieces(self.audio[first:sample], rng):
                engine.feed(self.name, as_pcm16(piece) if rng.random() < 0.5 else piece)
            first = sample
            if phrases is not None:
                engine.replace_phrases(self.name, phrases, sample)

    def go_on(self, engine: SpeechEngine, rng: Random) -> None:
        """Open it in an engine as after a crash."""
        if self.saved is None:
            self.outputs.clear()
            engine.open(self.name, self.options)
            self.feed(engine, rng, 0, self.fed, again=True)
        else:
            snapshot, first, count = self.saved
            del self.outputs[count:]
            engine.open(self.name, self.options, snapshot)
            self.feed(engine, rng, first, self.fed, again=rng.random() < 0.5)
        if self.is_whole:
            engine.finish(self.name)


def _pieces(samples: NDArray[np.float32], rng: Random) -> Iterator[NDArray[np.float32]]:
    first = 0
    while first < len(samples):
        size = rng.choice((1, 700, 2_560, 9_000, 40_000))
        yield samples[first : first + size]
        first += size


def _stream(number: int, rng: Random) -> Played:
    offset = rng.randrange(80_000)
    audio = speech(JFK)[offset : offset + rng.choice((0, 100, 30_000, 90_000, 90_000))].copy()
    for _ in range(len(audio) // 30_000):
        pause = rng.randrange(len(audio) - 8_000)
        audio[pause : pause + 8_000] = 0
    changes = [(rng.randrange(len(audio) + 1), rng.choice(LISTS)) for _ in range(rng.randrange(3))]
    options = StreamOptions(
        words=rng.random() < 0.5, auto_finalize=rng.random() < 0.7, phrases=rng.choice(LISTS)
    )
    return Played(number, audio, options, sorted(changes, key=lambda change: change[0]))


@cache
def _settings() -> tuple[Setting, ...]:
    every, plain = frozenset(Signal), frozenset({Signal.VAD, Signal.EOU})
    return tuple(
        Setting(context, page_frames, audio_snapshots, signals)
        for context in ((8, 1), (12, 5), (8, 0))
        for page_frames in (0, 3)
        for audio_snapshots in (False, True)
        for signals in (every, plain)
    )


def _alone(setting: Setting, stream: Played) -> list[StreamOutput]:
    engine, rng = setting.engine(1, 8, 0, overlaps=False), Random(0)
    engine.open(stream.name, stream.options)
    stream.feed(engine, rng, 0, len(stream.audio), again=True)
    engine.finish(stream.name)
    return list(_work(engine))


def _work(engine: SpeechEngine) -> Iterator[StreamOutput]:
    while engine.has_work():
        yield from engine.step()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32), setting=st.sampled_from(range(24)))
def test_crashes_change_nothing(seed: int, setting: int) -> None:
    rng, common = Random(seed), _settings()[setting]
    streams = {StreamId(number): _stream(number, rng) for number in range(1, SLOTS + 1)}

    def another() -> SpeechEngine:
        return common.engine(
            rng.randint(1, 3), rng.choice((1, 8, 16)), rng.choice((0, 1, 3)), overlaps=rng.random() < 0.5
        )

    engine = another()
    for stream in streams.values():
        engine.open(stream.name, stream.options)
        stream.feed(engine, rng, 0, 0, again=True)
        if stream.is_whole:
            engine.finish(stream.name)
    running = dict(streams)

    def step() -> None:
        for output in engine.step():
            streams[output.stream].outputs.append(output)
            assert output.failed is None
            if output.is_final:
                del running[output.stream]
        engine.check_integrity()

    for _ in range(rng.randrange(20, 90)):
        match rng.choice(("feed", "feed", "step", "step", "save", "save", "crash")):
            case "feed" if some := [one for one in running.values() if not one.is_whole]:
                stream = rng.choice(some)
                end = min(len(stream.audio), stream.fed + rng.choice((1, 1_280, 9_000, 30_000)))
                stream.feed(engine, rng, stream.fed, end)
                stream.fed = end
                if stream.is_whole:
                    engine.finish(stream.name)
            case "step":
                step()
            case "save" if running:
                stream = rng.choice(list(running.values()))
                try:
                    taken = engine.snapshot(stream.name)
                except EngineError:
                    continue  # it is at its end, or warms up
                stream.saved = taken.to_bytes(), taken.first_sample, len(stream.outputs)
            case "crash":
                engine = another()
                for stream in sorted(running.values(), key=lambda _: rng.random()):
                    stream.go_on(engine, rng)
    for stream in running.values():
        if not stream.is_whole:
            stream.feed(engine, rng, stream.fed, len(stream.audio))
            engine.finish(stream.name)
    while running:
        step()
    for stream in streams.values():
        assert told(stream.outputs) == told(_alone(common, stream))
