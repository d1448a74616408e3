"""A stream's language prompt: chosen by its option, kept through a snapshot, refused where unknown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.entries import StreamId
from common.options import StreamOptions
from gpu_worker.engine.config import EngineConfig
from gpu_worker.engine.interface import Engine, UnsupportedOption
from gpu_worker.model.config import PromptConfig
from gpu_worker.model.loaded_model import LoadedModel
from gpu_worker.steps.factory import make_model_engine
from tests.oracle.models import LONG_SENTENCE, random_model, speech, tiny

CONFIG = EngineConfig(num_slots=3, context=(70, 1), turn_detection=False)
LANGUAGES = PromptConfig(num_prompts=8, languages=(("en-US", 0), ("de-DE", 3), ("auto", 5)))


def prompted() -> LoadedModel:
    return random_model(5, prompt=LANGUAGES)


def run(engine: Engine, stream: StreamId) -> list[int]:
    tokens: list[int] = []
    while engine.has_work():
        for output in engine.step():
            if output.stream == stream:
                tokens += output.token_ids
    return tokens


def transcribe(engine: Engine, language: str | None, number: int = 1) -> list[int]:
    stream = StreamId(number)
    engine.open(stream, StreamOptions(language=language))
    engine.feed(stream, speech(LONG_SENTENCE))
    engine.finish(stream)
    return run(engine, stream)


def test_streams_of_one_engine_have_their_own_language() -> None:
    def engine() -> Engine:
        return make_model_engine(prompted(), CONFIG)

    alone = {language: transcribe(engine(), language) for language in ("en-US", "de-DE", "auto")}
    assert len({tuple(tokens) for tokens in alone.values()}) == 3, "the prompt changes nothing"
    assert transcribe(engine(), None) == alone["auto"]
    shared = engine()
    # One after another in the same slot, so that nothing of the stream before is left.
    assert [transcribe(shared, language, number) for number, language in enumerate(alone)] == list(
        alone.values()
    )


def test_a_snapshot_keeps_the_language() -> None:
    expected = transcribe(make_model_engine(prompted(), CONFIG), "de-DE")
    first, second = make_model_engine(prompted(), CONFIG), make_model_engine(prompted(), CONFIG)
    stream, options = StreamId(1), StreamOptions(language="de-DE")
    first.open(stream, options)
    first.feed(stream, speech(LONG_SENTENCE)[:50_000])
    tokens = run(first, stream)
    second.open(stream, options, first.snapshot(stream).to_bytes())
    second.feed(stream, speech(LONG_SENTENCE)[second.samples_decoded(stream) :])
    second.finish(stream)
    assert tokens + run(second, stream) == expected


def test_a_language_that_is_not_there_is_refused_and_takes_no_slot() -> None:
    engine = make_model_engine(prompted(), replace(CONFIG, num_slots=1))
    with pytest.raises(UnsupportedOption, match="no language prompt 'tlh'; it has auto, de-DE, en-US"):
        engine.open(StreamId(1), StreamOptions(language="tlh"))
    engine.open(StreamId(1), StreamOptions())
    engine.check_integrity()


def test_a_model_of_one_language_takes_none() -> None:
    engine = make_model_engine(tiny(), CONFIG)
    with pytest.raises(UnsupportedOption, match="takes no language; 'en-US' was asked for"):
        engine.open(StreamId(1), StreamOptions(language="en-US"))
