"""The table of a stream's life: complete, without dead ends, and every slot is given back once."""

from __future__ import annotations

import random

import pytest

from ingress.streams.life import TABLE, Action, Event, IllegalEvent, State, after

_KEPT_NO_LONGER = (State.OVER, State.CLOSED)
# Actions after which this ingress keeps nothing of the stream; all but one give its admission back.
_LAST = (Action.GIVE_BACK, Action.REMOVE, Action.REMOVE_UNSENT, Action.TELL_TAKEN)
# What can come in any state in which the stream is not over, whatever its client does.
_AT_ANY_TIME = (Event.FAILURE, Event.TAKEN)


def test_every_state_has_rows_and_can_be_reached() -> None:
    assert set(TABLE) == set(State)
    reached = {State.ADMITTED} | {to for rows in TABLE.values() for to, _ in rows.values()}
    assert reached == set(State)


@pytest.mark.parametrize("state", State)
def test_what_may_come_at_any_time_has_a_row(state: State) -> None:
    assert set(_AT_ANY_TIME) <= set(TABLE[state])
    assert Event.CREATED in TABLE[state] or state in (State.ADMITTED, State.LIVE)


def test_an_event_that_cannot_be_is_a_defect() -> None:
    with pytest.raises(IllegalEvent, match="SENT in LIVE"):
        after(State.LIVE, Event.SENT)


@pytest.mark.parametrize("state", [state for state in State if state not in _KEPT_NO_LONGER])
def test_a_stream_can_end_from_everywhere(state: State) -> None:
    seen, todo = {state}, [state]
    while todo:
        for to, _ in TABLE[todo.pop()].values():
            if to not in seen:
                seen.add(to)
                todo.append(to)
    assert seen & set(_KEPT_NO_LONGER)


def test_a_stream_is_let_go_once_and_only_by_a_last_action() -> None:
    chance = random.Random(1)
    for _ in range(2_000):
        state, last_actions = State.ADMITTED, 0
        for _ in range(30):
            event = chance.choice(list(TABLE[state]))
            before = state
            state, action = after(state, event)
            last_actions += action in _LAST
            let_go = state in _KEPT_NO_LONGER and before not in _KEPT_NO_LONGER
            assert let_go == (action in _LAST)
        assert last_actions == (state in _KEPT_NO_LONGER)
