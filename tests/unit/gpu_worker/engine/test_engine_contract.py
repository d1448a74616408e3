"""Every implementation of the steps keeps the engine's contract.  On a GPU: tests/gpu/test_engine.py."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from common.settings import WorkerSettings, parse
from gpu_worker.engine.config import BatchSizes, EngineConfig
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.steps.factory import make_model_engine
from gpu_worker.steps.nemo import NemoSteps
from gpu_worker.steps.nemo_model import NemoModel
from gpu_worker.steps.null import NullEngine
from gpu_worker.turn.configuration import turn_settings
from tests.contracts.engine_contract import EngineContract, Sizes
from tests.contracts.paged_contract import PagedEngineContract
from tests.contracts.phrase_contract import PhraseContract
from tests.device.overlapping_steps import OverlappingSteps
from tests.fake_nemo import FakeNemo
from tests.oracle.models import random_model

WORKER = parse("worker", [], {})
assert isinstance(WORKER, WorkerSettings)
TURNS_OF = turn_settings(WORKER)


def config_of(sizes: Sizes, context: tuple[int, int]) -> EngineConfig:
    return EngineConfig(
        num_slots=sizes.num_slots,
        context=context,
        page_frames=8,
        num_pages=sizes.num_pages,
        batch_sizes=BatchSizes(sizes.rows, sizes.rows, sizes.rows),
        turn_detection=sizes.turns,
        turn_settings=TURNS_OF,
    )


class TestEager(PagedEngineContract, PhraseContract):
    """The plain model, several chunks a step."""

    def make(self, sizes: Sizes) -> SpeechEngine:
        return make_model_engine(random_model(2), config_of(sizes, (70, 1)))


class TestEagerSingleFrames(PagedEngineContract):
    def make(self, sizes: Sizes) -> SpeechEngine:
        return make_model_engine(random_model(2), config_of(sizes, (70, 0)))


class TestEagerLongChunks(PagedEngineContract, PhraseContract):
    """A chunk is longer than what a step of single frames would take."""

    def make(self, sizes: Sizes) -> SpeechEngine:
        return make_model_engine(random_model(2), config_of(sizes, (70, 13)))


class AudioSnapshots(EngineContract):
    """A model whose caches do not reach far back: one layer, 8 frames of left context."""

    context = (8, 1)

    def make(self, sizes: Sizes) -> SpeechEngine:
        config = replace(config_of(sizes, self.context), audio_snapshots=True)
        return make_model_engine(random_model(2, num_layers=1), config)

    def test_snapshots_are_in_reach(self) -> None:
        assert 0 < self.make(Sizes()).steps.shape.reach_frames < 30


class TestAudioSnapshots(AudioSnapshots):
    """Snapshots leave out what the audio before them brings back."""


class TestAudioSnapshotsSingleFrames(AudioSnapshots):
    context = (8, 0)


class TestAudioSnapshotsOverlapping(AudioSnapshots, PhraseContract):
    """As on a GPU."""

    def make(self, sizes: Sizes) -> SpeechEngine:
        config = replace(config_of(sizes, self.context), audio_snapshots=True, max_step_frames=2)
        engine = make_model_engine(random_model(2, num_layers=1), config)
        return SpeechEngine(OverlappingSteps(engine.steps), random_model(2).tokenizer, book=engine.book)


class TestOverlapping(PagedEngineContract, PhraseContract):
    """The order of things on a GPU: a step is launched before the last one is read, a chunk a row."""

    def make(self, sizes: Sizes) -> SpeechEngine:
        config = replace(config_of(sizes, (70, 1)), max_step_frames=2)
        engine = make_model_engine(random_model(2), config)
        return SpeechEngine(OverlappingSteps(engine.steps), random_model(2).tokenizer, book=engine.book)


class TestNullAudioSnapshots(EngineContract):
    def make(self, sizes: Sizes) -> SpeechEngine:
        return NullEngine(sizes.num_slots, turn_detection=sizes.turns, audio_snapshots=True)


class TestNull(EngineContract):
    def make(self, sizes: Sizes) -> SpeechEngine:
        return NullEngine(sizes.num_slots, turn_detection=sizes.turns)


class TestNullLongChunks(EngineContract):
    def make(self, sizes: Sizes) -> SpeechEngine:
        return NullEngine(sizes.num_slots, 1_040, turn_detection=sizes.turns)


@pytest.mark.parametrize("chunk_frames", [1, 2, 7])
class TestNemo(EngineContract):
    """NeMo's steps over something that stands for NeMo."""

    @pytest.fixture(autouse=True)
    def _chunk(self, chunk_frames: int) -> None:
        self.chunk_frames = chunk_frames

    def make(self, sizes: Sizes) -> SpeechEngine:
        model = FakeNemo(self.chunk_frames)
        steps = NemoSteps(
            cast("NemoModel", model),
            num_slots=sizes.num_slots,
            batch_size=sizes.rows,
            turn_detection=sizes.turns,
        )
        return SpeechEngine(steps, model.tokenizer, prompt_of=steps.prompt_of)
