"""The life of a stream at an ingress, as one table of states and events.

A stream outlives its connection: if its client has left, it is brought to its end; if its client may come
back, it waits for the client. Every event has a row in every state in which it can come; an event without a
row is a defect.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """The state of a stream."""

    ADMITTED = "it has a slot, and no audio yet"
    CREATING = "it is being created in Redis; its audio is held"
    LIVE = "it is in Redis, and its client is there"
    WAITING = "its client is lost, and may come back for some time"
    LEAVING = "its client has left; its end is marked, and awaited"
    FAILED = "it cannot go on at this connection, and its client is being told"
    GIVEN_UP = "it cannot go on, and nobody listens; it is brought to its end in Redis"
    ENDED = "its last result is on its way to the client"
    OVER = "its last result has come, and this ingress keeps it no longer"
    CLOSED = "it goes on elsewhere, or never began; this ingress keeps it no longer"


class Event(Enum):
    """An event of a stream."""

    BEGIN = "its first message has come"
    CREATED = "it is in Redis"
    ADOPT = "it was begun by another connection, and is this ingress's now"
    CLIENT_LOST = "its connection is lost, and the client may come back"
    CLIENT_LEFT = "nobody listens any more"
    GRACE_OVER = "the client has not come back in time"
    EXPIRED = "its end has not come in the time that its keys live, or Redis has forgotten it"
    FAILURE = "it cannot go on here"
    LAST_RESULT = "its last result has come"
    SENT = "its end has been sent to the client"
    TAKEN = "another connection has resumed it"


class Action(Enum):
    """An action that an event causes."""

    CREATE = "create the stream in Redis"
    APPEND_HELD = "append the audio that was held"
    DROP_HELD = "let go of the audio that was held"
    GIVE_BACK = "give an admission back that was not used"
    START_GRACE = "note until when the client may come back"
    FINISH = "append a final mark"
    TELL_FAILURE = "tell the client"
    TELL_TAKEN = "tell the connection, and forget the stream"
    DELIVER = "send the last result"
    GIVE_UP = "withdraw the stream, or mark its end"
    REMOVE_UNSENT = "give the admission back, unless the client has resumed elsewhere"
    REMOVE = "give the admission back"


_S, _E, _A = State, Event, Action
Row = tuple[State, Action | None]

TABLE: Final[dict[State, dict[Event, Row]]] = {
    _S.ADMITTED: {
        _E.BEGIN: (_S.CREATING, _A.CREATE),
        _E.ADOPT: (_S.LIVE, None),
        _E.CLIENT_LOST: (_S.CLOSED, _A.GIVE_BACK),
        _E.CLIENT_LEFT: (_S.CLOSED, _A.GIVE_BACK),
        _E.FAILURE: (_S.FAILED, _A.TELL_FAILURE),
        _E.TAKEN: (_S.CLOSED, _A.TELL_TAKEN),
    },
    _S.CREATING: {
        _E.CREATED: (_S.LIVE, _A.APPEND_HELD),
        _E.CLIENT_LOST: (_S.WAITING, _A.START_GRACE),
        _E.CLIENT_LEFT: (_S.LEAVING, _A.FINISH),
        _E.FAILURE: (_S.FAILED, _A.TELL_FAILURE),
        _E.LAST_RESULT: (_S.ENDED, _A.DELIVER),
        _E.TAKEN: (_S.CLOSED, _A.TELL_TAKEN),
    },
    _S.LIVE: {
        _E.CLIENT_LOST: (_S.WAITING, _A.START_GRACE),
        _E.CLIENT_LEFT: (_S.LEAVING, _A.FINISH),
        _E.FAILURE: (_S.FAILED, _A.TELL_FAILURE),
        _E.LAST_RESULT: (_S.ENDED, _A.DELIVER),
        _E.TAKEN: (_S.CLOSED, _A.TELL_TAKEN),
    },
    _S.WAITING: {
        _E.CREATED: (_S.WAITING, _A.APPEND_HELD),
        _E.CLIENT_LEFT: (_S.LEAVING, _A.FINISH),
        _E.GRACE_OVER: (_S.LEAVING, _A.FINISH),
        _E.EXPIRED: (_S.CLOSED, _A.REMOVE_UNSENT),
        _E.FAILURE: (_S.GIVEN_UP, _A.GIVE_UP),
        _E.LAST_RESULT: (_S.OVER, _A.REMOVE_UNSENT),
        _E.TAKEN: (_S.CLOSED, _A.TELL_TAKEN),
    },
    _S.LEAVING: {
        _E.CREATED: (_S.LEAVING, _A.APPEND_HELD),
        _E.EXPIRED: (_S.CLOSED, _A.REMOVE_UNSENT),
        _E.FAILURE: (_S.GIVEN_UP, _A.GIVE_UP),
        _E.LAST_RESULT: (_S.OVER, _A.REMOVE_UNSENT),
        _E.TAKEN: (_S.CLOSED, _A.TELL_TAKEN),
    },
    _S.FAILED: {
        _E.CREATED: (_S.FAILED, _A.APPEND_HELD),
        _E.CLIENT_LOST: (_S.WAITING, _A.START_GRACE),
        _E.CLIENT_LEFT: (_S.GIVEN_UP, _A.GIVE_UP),
        _E.FAILURE: (_S.FAILED, None),
        _E.LAST_RESULT: (_S.ENDED, _A.DELIVER),
        _E.TAKEN: (_S.CLOSED, _A.TELL_TAKEN),
    },
    _S.GIVEN_UP: {
        _E.CREATED: (_S.GIVEN_UP, _A.APPEND_HELD),
        _E.EXPIRED: (_S.CLOSED, _A.REMOVE_UNSENT),
        _E.FAILURE: (_S.GIVEN_UP, None),
        _E.LAST_RESULT: (_S.OVER, _A.REMOVE_UNSENT),
        _E.TAKEN: (_S.CLOSED, _A.TELL_TAKEN),
    },
    _S.ENDED: {
        _E.CREATED: (_S.ENDED, _A.DROP_HELD),
        _E.CLIENT_LOST: (_S.OVER, _A.REMOVE_UNSENT),
        _E.CLIENT_LEFT: (_S.OVER, _A.REMOVE_UNSENT),
        _E.FAILURE: (_S.ENDED, None),
        _E.SENT: (_S.OVER, _A.REMOVE),
        _E.TAKEN: (_S.CLOSED, _A.TELL_TAKEN),
    },
    # Events that were under way when this ingress gave the stream up.
    _S.OVER: {
        _E.CREATED: (_S.OVER, _A.DROP_HELD),
        _E.FAILURE: (_S.OVER, None),
        _E.TAKEN: (_S.OVER, None),
    },
    _S.CLOSED: {
        _E.CREATED: (_S.CLOSED, _A.DROP_HELD),
        _E.FAILURE: (_S.CLOSED, None),
        _E.TAKEN: (_S.CLOSED, None),
    },
}


class IllegalEvent(Exception):  # noqa: N818 - the name says it
    """An event in a state in which it cannot come: a defect."""


def after(state: State, event: Event) -> Row:
    """Return the state after an event, and the actions that it causes. Raises IllegalEvent."""
    row = TABLE[state].get(event)
    if row is None:
        raise IllegalEvent(f"{event.name} in {state.name}")
    return row
