"""What the engine's thread says: the error of a stream that its engine refuses."""

from __future__ import annotations

from common.errors import ErrorCode
from gpu_worker.engine.interface import OutOfPages, PhrasesFull, UnsupportedOption
from gpu_worker.pipeline.engine_events import failure_of


def test_what_the_engine_says_of_phrases_is_the_clients_to_know() -> None:
    unwritable = failure_of(UnsupportedOption("this model cannot write that"))
    assert (unwritable.code, unwritable.message) == (ErrorCode.BAD_OPTION, "this model cannot write that")
    assert failure_of(PhrasesFull("no memory")).code is ErrorCode.PHRASES_FULL
    assert failure_of(OutOfPages("no page")).code is ErrorCode.WORKER_FAILED
