"""The table: complete where it must be, and the diagram of the docs drawn from it."""

from pathlib import Path

import pytest

from gpu_worker.turn.endpointing import Endpointer
from gpu_worker.turn.outcome import TurnChunk
from gpu_worker.turn.settings import TurnSettings
from gpu_worker.turn.transitions import (
    REPORTED,
    TABLE,
    Action,
    Event,
    IllegalTransitionError,
    State,
    mermaid,
)

DOCS = Path(__file__).parents[4] / "docs" / "turn-detection.md"
OPEN_STATES = {State.SPEAKING, State.DIPPING, State.PAUSED, State.RESUMING}


def test_every_state_has_a_report_and_can_be_reached_and_finished() -> None:
    assert set(REPORTED) == set(State)
    assert {t.to for t in TABLE.values()} | {State.IDLE} == set(State)
    for state in set(State) - {State.CLOSED}:
        assert TABLE[state, Event.FINISHED].to is State.CLOSED


def test_an_utterance_is_open_exactly_between_start_and_end() -> None:
    for (state, _), transition in TABLE.items():
        opens = state not in OPEN_STATES and transition.to in OPEN_STATES
        closes = state in OPEN_STATES and transition.to not in OPEN_STATES
        assert opens == (transition.action is Action.OPEN)
        assert closes == (transition.action is Action.CLOSE)


def test_nothing_leaves_closed() -> None:
    assert not [state for state, _ in TABLE if state is State.CLOSED]


def test_an_event_without_a_place_is_an_error() -> None:
    endpointer = Endpointer(TurnSettings())
    endpointer.read(TurnChunk(0, final=True))
    with pytest.raises(IllegalTransitionError, match="closed"):
        endpointer._apply(Event.SPEECH, 512)


def test_the_diagram_of_the_docs_is_the_table() -> None:
    assert f"```mermaid\n{mermaid()}\n```" in DOCS.read_text()
