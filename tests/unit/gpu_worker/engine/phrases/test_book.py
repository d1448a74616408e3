"""Trees that are made beside the engine: it waits for them without a stop, and for its stream alone."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from common.entries import StreamId
from common.options import StreamOptions
from common.phrases import Phrase
from gpu_worker.boosting.spelling import tree_of
from gpu_worker.boosting.tree import PhraseTree
from gpu_worker.engine.config import EngineConfig
from gpu_worker.engine.engine import SpeechEngine
from gpu_worker.engine.interface import EngineError, StreamOutput
from gpu_worker.engine.phrases.book import PhraseBook, PhraseList
from gpu_worker.steps.factory import make_model_engine
from tests.contracts.engine_contract import step_until_idle, told
from tests.contracts.phrase_contract import phrases_of
from tests.oracle.models import JFK, random_model, speech, tiny
from tests.waiting import wait_until

SAMPLES = speech(JFK)[:40_000]
CONFIG = EngineConfig(num_slots=3, context=(70, 1), turn_detection=False)


class _Maker:
    """Makes trees when it is let."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.made: list[PhraseList] = []
        self.thread = ""

    def __call__(self, phrases: PhraseList) -> PhraseTree:
        assert self.may_go_on.wait(60)
        self.made.append(phrases)
        self.thread = threading.current_thread().name
        if phrases == (Phrase("defect"),):
            raise RuntimeError("a defect")
        return tree_of(tiny().tokenizer, phrases)


def _engine(maker: _Maker) -> tuple[SpeechEngine, threading.Event]:
    steps = make_model_engine(random_model(2), CONFIG).steps
    engine = SpeechEngine(steps, random_model(2).tokenizer, book=PhraseBook(steps.trees, maker, beside=True))
    woken = threading.Event()
    engine.book.wake_with(woken.set)
    return engine, woken


def _inline(phrases: PhraseList) -> list[StreamOutput]:
    engine = make_model_engine(random_model(2), CONFIG)
    engine.open(StreamId(1), StreamOptions(phrases=phrases))
    engine.feed(StreamId(1), SAMPLES)
    engine.finish(StreamId(1))
    return step_until_idle(engine)


def test_a_stream_waits_for_its_tree_and_no_other_does() -> None:
    maker = _Maker()
    engine, woken = _engine(maker)
    for number, phrases in ((1, phrases_of(1)), (2, ())):
        engine.open(StreamId(number), StreamOptions(phrases=phrases))
        engine.feed(StreamId(number), SAMPLES)
        engine.finish(StreamId(number))
    outputs = step_until_idle(engine)
    assert {output.stream for output in outputs} == {2}
    assert outputs[-1].is_final
    assert not engine.has_work()
    maker.may_go_on.set()
    assert woken.wait(60)
    wait_until(engine.has_work)
    assert maker.thread.startswith("phrases")
    assert told(step_until_idle(engine)) == told(_inline(phrases_of(1)))


def test_a_list_that_nobody_wants_any_more_is_not_made() -> None:
    maker = _Maker()
    engine, _ = _engine(maker)
    engine.open(StreamId(1), StreamOptions(phrases=phrases_of(1)))
    # The thread is at the first; the second waits, and is taken back.
    engine.open(StreamId(2), StreamOptions(phrases=phrases_of(2)))
    engine.close(StreamId(2))
    engine.open(StreamId(3), StreamOptions(phrases=phrases_of(3)))
    engine.check_integrity()
    maker.may_go_on.set()
    wait_until(lambda: maker.made == [phrases_of(1), phrases_of(3)])


def test_a_tree_is_kept_no_longer_than_until_it_is_in_its_place() -> None:
    maker = _Maker()
    maker.may_go_on.set()
    steps = make_model_engine(random_model(2), CONFIG).steps
    book = PhraseBook(steps.trees, maker)
    first = book.hold(phrases_of(1))
    assert first.is_built
    book.place(first)
    assert first.future is None
    assert first.is_built
    second = book.hold(phrases_of(1))
    book.place(second)
    assert second is first
    assert maker.made == [phrases_of(1)]
    book.check_integrity(2)
    book.release(first)
    book.release(second)
    assert book.num_lists == book.end == 0


def test_a_defect_in_making_a_tree_ends_its_stream_alone(caplog: pytest.LogCaptureFixture) -> None:
    maker = _Maker()
    maker.may_go_on.set()
    engine, woken = _engine(maker)
    engine.open(StreamId(1), StreamOptions(phrases=(Phrase("defect"),)))
    engine.open(StreamId(2), StreamOptions())
    assert woken.wait(60)
    wait_until(engine.has_work)
    (output,) = step_until_idle(engine)
    assert output.stream == 1
    assert isinstance(output.failed, EngineError)
    assert "could not be made" in caplog.text
    assert engine.stats.open_streams == 1


def test_phrases_of_all_streams_are_heard_beside_those_of_one() -> None:
    common = phrases_of(1)
    config = replace(CONFIG, common_phrases=common)
    engine = make_model_engine(random_model(2), config)
    engine.open(StreamId(1), StreamOptions())
    engine.feed(StreamId(1), SAMPLES)
    engine.finish(StreamId(1))
    assert told(step_until_idle(engine)) == told(_inline(common))
    assert engine.book.num_lists == 1, "it stays for the next stream"
    engine.open(StreamId(2), StreamOptions(phrases=phrases_of(2)))
    engine.feed(StreamId(2), SAMPLES)
    engine.finish(StreamId(2))
    both = [token for output in step_until_idle(engine) for token in output.token_ids]
    assert both not in [
        [token for output in _inline(phrases) for token in output.token_ids]
        for phrases in ((), common, phrases_of(2))
    ]
    assert (
        engine.steps.shape.fingerprint != make_model_engine(random_model(2), CONFIG).steps.shape.fingerprint
    )
