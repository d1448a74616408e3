"""An engine over a lane's steps keeps the contract of every engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pytest

from gpu_worker.boosting.spelling import tree_of
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.phrases.book import PhraseBook
from gpu_worker.engine.steps import AllocateRings
from gpu_worker.steps.factory import make_model_engine
from gpu_worker.steps.null import Letters, NullEngine
from tests.contracts.engine_contract import EngineContract, Sizes
from tests.contracts.paged_contract import PagedEngineContract
from tests.contracts.phrase_contract import PhraseContract
from tests.device.lane_stack import lane_stack
from tests.oracle.models import random_model
from tests.unit.gpu_worker.engine.test_engine_contract import config_of

NUM_LANES = 2


class Stacks:
    """The lanes that a test makes, which end with it."""

    @pytest.fixture(autouse=True)
    def _stacks(self) -> Iterator[None]:
        with ExitStack() as self.stacks:
            yield


def of_all(sizes: Sizes) -> Sizes:
    """The device has room for every lane."""
    return replace(
        sizes,
        num_slots=NUM_LANES * sizes.num_slots,
        rows=NUM_LANES * sizes.rows,
        num_pages=NUM_LANES * sizes.num_pages,
    )


class TestLane(Stacks, PagedEngineContract, PhraseContract):
    """The second lane of a device that runs the plain model: its slots and pages are not the first ones."""

    def make(self, sizes: Sizes) -> SpeechEngine:
        def whole(rings: AllocateRings) -> SpeechEngine:
            return make_model_engine(random_model(2), config_of(of_all(sizes), (70, 1)), rings=rings)

        tokenizer = random_model(2).tokenizer
        stack = self.stacks.enter_context(lane_stack(whole, NUM_LANES, tokenizer.vocab_size))
        steps = stack.lanes[1]
        steps.shape = replace(steps.shape, max_rows=sizes.rows)
        book = PhraseBook(steps.trees, partial(tree_of, tokenizer))
        return SpeechEngine(steps, tokenizer, book=book)


class TestNullLane(Stacks, EngineContract):
    def make(self, sizes: Sizes) -> SpeechEngine:
        def whole(rings: AllocateRings) -> SpeechEngine:
            return NullEngine(NUM_LANES * sizes.num_slots, turn_detection=sizes.turns, rings=rings)

        stack = self.stacks.enter_context(lane_stack(whole, NUM_LANES))
        return SpeechEngine(stack.lanes[1], Letters())
