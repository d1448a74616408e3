"""The life of a connection in any dialect, without I/O: one table of states and events.

`ConnectionProtocol` turns the client's messages and the service's events into transitions of `TABLE`. Each
transition names the actions that ingress/clients/connection.py carries out. A message that the state does not
allow is a transition with an error code, never an exception. The diagram in docs/protocol.md is drawn from
the same table.

The form follows h11's `_state.py`: the table is data, and can be read to learn what is allowed.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, NamedTuple

from common.errors import ErrorCode, StreamError
from common.messages import Audio, Auth, ClientMessage, Close, Config, Finalize, Phrases, Ping, Resume


class State(Enum):
    """The state of a connection."""

    __hash__ = object.__hash__  # members are looked up for every message; Enum hashes in Python

    STRANGER = auto()  # the server requires a key, and the client has shown none
    ADMITTING = auto()  # the cluster is being asked for a stream; input waits
    REFUSED = auto()  # the cluster is full and the client knows; it may still resume a stream
    READY = auto()  # hello is sent, no stream has begun
    PARKED = auto()  # as READY, but for so long that the slot was returned
    READMITTING = auto()  # the first message came after all; it and those after it wait for a slot
    RESUMING = auto()  # the stream to resume is being taken over
    CONFIGURED = auto()  # the stream has begun, without audio
    STREAMING = auto()  # audio is accepted
    FINISHING = auto()  # no more audio; the final result is awaited
    FAILING = auto()  # the client's fault ended the audio; the error goes out behind the final result
    CLOSED = auto()  # nothing more is sent or read


class Event(Enum):
    """An event of a connection: first those of its client, then those of the service."""

    __hash__ = object.__hash__  # members are looked up for every message; Enum hashes in Python

    AUDIO = auto()
    FINAL_AUDIO = auto()
    CLOSE = auto()
    FINALIZE = auto()
    PHRASES = auto()
    CONFIG = auto()
    RESUME = auto()
    PING = auto()
    AUTH = auto()
    FAULT = auto()  # the client sent something malformed, or too much
    END = auto()  # the client closed its sending side (TCP) and may still read
    LOST = auto()  # the socket is gone, or the connection cannot go on

    IDENTIFIED = auto()  # the key is valid
    ADMITTED = auto()
    FULL = auto()
    UNBEGUN = auto()  # no stream has begun in the time for which a slot is kept
    RESUMED = auto()
    RESUMED_FINISHED = auto()  # resumed, and all its audio had been sent already
    RESULT = auto()
    LAST_RESULT = auto()  # the final result
    STREAM_FAILED = auto()  # the worker's error, which ended the stream
    TAKEN = auto()  # another connection resumed the stream
    FAILED = auto()  # the service cannot go on with the stream
    EXPIRED = auto()  # the time in which a refused client may resume is over
    DRAIN = auto()  # this ingress drains


class Action(Enum):
    """An action of ingress/clients/connection.py; a transition lists its actions in order."""

    __hash__ = object.__hash__  # members are looked up for every message; Enum hashes in Python

    IDENTIFY = auto()  # check the key
    ENTER = auto()  # ask the cluster for a stream
    HELLO = auto()  # send `hello`
    PONG = auto()  # send `pong`
    READMIT = auto()  # ask for the returned slot again, then take the message again
    BEGIN = auto()  # create the stream in Redis
    APPEND = auto()  # append the message's audio (and its final mark)
    FINALIZE = auto()  # append a mark that asks for a result of all audio before it
    PHRASES = auto()  # append phrases that replace the stream's from the end of its audio so far on
    FINISH = auto()  # append a final mark without audio
    TAKE_OVER = auto()  # claim the stream to resume
    WELCOME_BACK = auto()  # send `resumed`
    FORWARD = auto()  # send the result
    ERROR = auto()  # send `error`
    GIVE_BACK = auto()  # return an admission under which no stream began
    ABANDON = auto()  # no client listens any more: finalize the stream, after its grace period if it has one
    RELEASE = auto()  # the stream has ended and its end is sent: return its slot
    HANG_UP = auto()  # close the socket once all is sent


class Transition(NamedTuple):
    """The next state and the actions of an event. `error`: the code to send, if the table sets it."""

    state: State
    actions: tuple[Action, ...] = ()
    error: ErrorCode | None = None


_A = Action
_S = State
_E = Event

_REFUSE_AUDIO: Final = Transition(_S.FINISHING, (_A.ERROR,), ErrorCode.AUDIO_AFTER_FINAL)
_OUT_OF_PLACE: Final = Transition(_S.CLOSED, (_A.ERROR, _A.ABANDON, _A.HANG_UP), ErrorCode.UNEXPECTED_MESSAGE)
# The audio before a fault was accepted, so its final result comes first and the error after it.
_OUT_OF_PLACE_LATE: Final = Transition(_S.FAILING, (_A.FINISH,), ErrorCode.UNEXPECTED_MESSAGE)
_OUT_OF_PLACE_LAST: Final = Transition(_S.FAILING, (), ErrorCode.UNEXPECTED_MESSAGE)
_FAIL_STREAM: Final = Transition(_S.CLOSED, (_A.ERROR, _A.ABANDON, _A.HANG_UP))
_FAIL_EARLY: Final = Transition(_S.CLOSED, (_A.ERROR, _A.GIVE_BACK, _A.HANG_UP))
_FAIL_PARKED: Final = Transition(_S.CLOSED, (_A.ERROR, _A.HANG_UP))
_DRAIN_PARKED: Final = Transition(_S.CLOSED, (_A.ERROR, _A.HANG_UP), ErrorCode.DRAINING)
_DRAIN_STREAM: Final = Transition(_S.CLOSED, (_A.ERROR, _A.ABANDON, _A.HANG_UP), ErrorCode.DRAINING)
_DRAIN_EARLY: Final = Transition(_S.CLOSED, (_A.ERROR, _A.GIVE_BACK, _A.HANG_UP), ErrorCode.DRAINING)
_READMIT: Final = Transition(_S.READMITTING, (_A.READMIT,))
_LAST: Final = Transition(_S.CLOSED, (_A.FORWARD, _A.RELEASE, _A.HANG_UP))
_STREAM_FAILED: Final = Transition(_S.CLOSED, (_A.ERROR, _A.RELEASE, _A.HANG_UP))
_TAKEN: Final = Transition(_S.CLOSED, (_A.ERROR, _A.HANG_UP), ErrorCode.RESUMED_ELSEWHERE)

_UNKNOWN: Final = Transition(_S.CLOSED, (_A.ERROR, _A.HANG_UP), ErrorCode.UNAUTHORIZED)

TABLE: Final[dict[State, dict[Event, Transition]]] = {
    _S.STRANGER: {
        _E.AUTH: Transition(_S.STRANGER, (_A.IDENTIFY,)),
        _E.IDENTIFIED: Transition(_S.ADMITTING, (_A.ENTER,)),
        _E.AUDIO: _UNKNOWN,
        _E.FINAL_AUDIO: _UNKNOWN,
        _E.CLOSE: _UNKNOWN,
        _E.FINALIZE: _UNKNOWN,
        _E.PHRASES: _UNKNOWN,
        _E.CONFIG: _UNKNOWN,
        _E.RESUME: _UNKNOWN,
        _E.PING: _UNKNOWN,
        _E.UNBEGUN: _UNKNOWN,
        _E.FAULT: _FAIL_PARKED,
        _E.FAILED: _FAIL_PARKED,
        _E.END: Transition(_S.CLOSED, (_A.HANG_UP,)),
        _E.LOST: Transition(_S.CLOSED),
        _E.DRAIN: _DRAIN_PARKED,
    },
    _S.ADMITTING: {
        _E.ADMITTED: Transition(_S.READY, (_A.HELLO,)),
        _E.FULL: Transition(_S.REFUSED, (_A.ERROR,)),
        _E.FAULT: _FAIL_EARLY,
        _E.FAILED: _FAIL_EARLY,
        _E.DRAIN: _DRAIN_EARLY,
        _E.LOST: Transition(_S.CLOSED, (_A.GIVE_BACK,)),
    },
    _S.REFUSED: {
        _E.RESUME: Transition(_S.RESUMING, (_A.TAKE_OVER,)),
        # Messages that were under way when the client was refused get no second error.
        _E.AUDIO: Transition(_S.REFUSED),
        _E.FINAL_AUDIO: Transition(_S.REFUSED),
        _E.CLOSE: Transition(_S.CLOSED, (_A.HANG_UP,)),
        _E.FINALIZE: Transition(_S.REFUSED),
        _E.PHRASES: Transition(_S.REFUSED),
        _E.CONFIG: Transition(_S.REFUSED),
        _E.PING: Transition(_S.REFUSED, (_A.PONG,)),
        _E.FAULT: Transition(_S.CLOSED, (_A.HANG_UP,)),
        _E.END: Transition(_S.CLOSED, (_A.HANG_UP,)),
        _E.LOST: Transition(_S.CLOSED),
        _E.FAILED: Transition(_S.CLOSED, (_A.HANG_UP,)),
        _E.EXPIRED: Transition(_S.CLOSED, (_A.HANG_UP,)),
        _E.DRAIN: Transition(_S.CLOSED, (_A.HANG_UP,)),
    },
    _S.READY: {
        _E.AUDIO: Transition(_S.STREAMING, (_A.BEGIN, _A.APPEND)),
        _E.FINAL_AUDIO: Transition(_S.FINISHING, (_A.BEGIN, _A.APPEND)),
        _E.CLOSE: Transition(_S.FINISHING, (_A.BEGIN, _A.FINISH)),
        _E.FINALIZE: Transition(_S.STREAMING, (_A.BEGIN, _A.FINALIZE)),
        _E.PHRASES: Transition(_S.CONFIGURED, (_A.BEGIN, _A.PHRASES)),
        _E.CONFIG: Transition(_S.CONFIGURED, (_A.BEGIN,)),
        _E.RESUME: Transition(_S.RESUMING, (_A.TAKE_OVER,)),
        _E.PING: Transition(_S.READY, (_A.PONG,)),
        _E.FAULT: _FAIL_EARLY,
        _E.END: Transition(_S.CLOSED, (_A.GIVE_BACK, _A.HANG_UP)),
        _E.LOST: Transition(_S.CLOSED, (_A.GIVE_BACK,)),
        _E.UNBEGUN: Transition(_S.PARKED, (_A.GIVE_BACK,)),
        _E.FAILED: _FAIL_EARLY,
        _E.DRAIN: _DRAIN_EARLY,
    },
    _S.PARKED: {
        _E.AUDIO: _READMIT,
        _E.FINAL_AUDIO: _READMIT,
        _E.CLOSE: _READMIT,
        _E.FINALIZE: _READMIT,
        _E.PHRASES: _READMIT,
        _E.CONFIG: _READMIT,
        _E.RESUME: Transition(_S.RESUMING, (_A.TAKE_OVER,)),
        _E.PING: Transition(_S.PARKED, (_A.PONG,)),
        _E.FAULT: _FAIL_PARKED,
        _E.END: Transition(_S.CLOSED, (_A.HANG_UP,)),
        _E.LOST: Transition(_S.CLOSED),
        _E.FAILED: _FAIL_PARKED,
        _E.DRAIN: _DRAIN_PARKED,
    },
    _S.READMITTING: {
        _E.ADMITTED: Transition(_S.READY),
        _E.FULL: Transition(_S.REFUSED, (_A.ERROR,)),
        _E.FAULT: _FAIL_PARKED,
        _E.LOST: Transition(_S.CLOSED),
        _E.FAILED: _FAIL_PARKED,
        _E.DRAIN: _DRAIN_PARKED,
    },
    _S.RESUMING: {
        _E.RESUMED: Transition(_S.STREAMING, (_A.WELCOME_BACK,)),
        _E.RESUMED_FINISHED: Transition(_S.FINISHING, (_A.WELCOME_BACK,)),
        _E.PING: Transition(_S.RESUMING, (_A.PONG,)),
        # `resumed` states the next sample: until then the client cannot send audio.
        _E.AUDIO: _OUT_OF_PLACE,
        _E.FINAL_AUDIO: _OUT_OF_PLACE,
        _E.CLOSE: _OUT_OF_PLACE,
        _E.FINALIZE: _OUT_OF_PLACE,
        _E.PHRASES: _OUT_OF_PLACE,
        _E.CONFIG: _OUT_OF_PLACE,
        _E.RESUME: _OUT_OF_PLACE,
        _E.FAULT: _FAIL_STREAM,
        _E.END: Transition(_S.CLOSED, (_A.ABANDON, _A.HANG_UP)),
        _E.LOST: Transition(_S.CLOSED, (_A.ABANDON,)),
        _E.FAILED: _FAIL_STREAM,
        _E.DRAIN: _DRAIN_STREAM,
    },
    _S.CONFIGURED: {
        _E.AUDIO: Transition(_S.STREAMING, (_A.APPEND,)),
        _E.FINAL_AUDIO: Transition(_S.FINISHING, (_A.APPEND,)),
        _E.CLOSE: Transition(_S.FINISHING, (_A.FINISH,)),
        _E.FINALIZE: Transition(_S.STREAMING, (_A.FINALIZE,)),
        _E.PHRASES: Transition(_S.CONFIGURED, (_A.PHRASES,)),
        _E.CONFIG: _OUT_OF_PLACE,
        _E.RESUME: _OUT_OF_PLACE,
        _E.PING: Transition(_S.CONFIGURED, (_A.PONG,)),
        _E.FAULT: _FAIL_STREAM,
        _E.END: Transition(_S.FINISHING, (_A.FINISH,)),
        _E.LOST: Transition(_S.CLOSED, (_A.ABANDON,)),
        _E.STREAM_FAILED: _STREAM_FAILED,
        _E.TAKEN: _TAKEN,
        _E.FAILED: _FAIL_STREAM,
        _E.DRAIN: _DRAIN_STREAM,
    },
    _S.STREAMING: {
        _E.AUDIO: Transition(_S.STREAMING, (_A.APPEND,)),
        _E.FINAL_AUDIO: Transition(_S.FINISHING, (_A.APPEND,)),
        _E.CLOSE: Transition(_S.FINISHING, (_A.FINISH,)),
        _E.FINALIZE: Transition(_S.STREAMING, (_A.FINALIZE,)),
        _E.PHRASES: Transition(_S.STREAMING, (_A.PHRASES,)),
        _E.CONFIG: _OUT_OF_PLACE_LATE,
        _E.RESUME: _OUT_OF_PLACE_LATE,
        _E.PING: Transition(_S.STREAMING, (_A.PONG,)),
        _E.FAULT: Transition(_S.FAILING, (_A.FINISH,)),
        _E.END: Transition(_S.FINISHING, (_A.FINISH,)),
        _E.LOST: Transition(_S.CLOSED, (_A.ABANDON,)),
        _E.RESULT: Transition(_S.STREAMING, (_A.FORWARD,)),
        _E.LAST_RESULT: _LAST,
        _E.STREAM_FAILED: _STREAM_FAILED,
        _E.TAKEN: _TAKEN,
        _E.FAILED: _FAIL_STREAM,
        _E.DRAIN: _DRAIN_STREAM,
    },
    _S.FINISHING: {
        _E.AUDIO: _REFUSE_AUDIO,
        _E.FINAL_AUDIO: _REFUSE_AUDIO,
        _E.CLOSE: Transition(_S.FINISHING),  # `final: true` and then `close` is what many clients do
        _E.FINALIZE: Transition(_S.FINISHING),  # the final result answers it
        _E.PHRASES: Transition(_S.FINISHING),  # no chunk follows
        _E.CONFIG: _OUT_OF_PLACE_LAST,
        _E.RESUME: _OUT_OF_PLACE_LAST,
        _E.PING: Transition(_S.FINISHING, (_A.PONG,)),
        _E.FAULT: Transition(_S.FAILING),
        _E.END: Transition(_S.FINISHING),
        _E.LOST: Transition(_S.CLOSED, (_A.ABANDON,)),
        _E.RESULT: Transition(_S.FINISHING, (_A.FORWARD,)),
        _E.LAST_RESULT: _LAST,
        _E.STREAM_FAILED: _STREAM_FAILED,
        _E.TAKEN: _TAKEN,
        _E.FAILED: _FAIL_STREAM,
        _E.DRAIN: _DRAIN_STREAM,
    },
    # The client's messages are ignored here (`ConnectionProtocol.deaf`), and the error is that of the fault.
    _S.FAILING: {
        _E.END: Transition(_S.FAILING),
        _E.LOST: Transition(_S.CLOSED, (_A.ABANDON,)),
        _E.RESULT: Transition(_S.FAILING, (_A.FORWARD,)),
        _E.LAST_RESULT: Transition(_S.CLOSED, (_A.FORWARD, _A.RELEASE, _A.ERROR, _A.HANG_UP)),
        _E.STREAM_FAILED: _STREAM_FAILED,
        _E.TAKEN: _TAKEN,
        _E.FAILED: _FAIL_STREAM,
        _E.DRAIN: _FAIL_STREAM,
    },
    _S.CLOSED: {},
}
"""Every state's transitions. An event that a state does not list is ignored: it came too late (a
result after the end), or from a part of the service that did not know the state."""


YOUNG: Final = frozenset((_S.STRANGER, _S.ADMITTING, _S.REFUSED, _S.READY, _S.PARKED, _S.READMITTING))
"""The states in which no stream has begun."""


FORWARDING: Final = frozenset(state for state in TABLE if Event.RESULT in TABLE[state])
"""The states in which the client receives results and errors of its audio."""


def _doing_only(event: Event, action: Action) -> frozenset[State]:
    return frozenset(state for state in TABLE if TABLE[state].get(event) == Transition(state, (action,)))


ONLY_APPENDING: Final = _doing_only(Event.AUDIO, Action.APPEND)
"""The states in which audio, unless it is the last, is only appended and changes no state."""

_SENTENCES: Final = {
    ErrorCode.AUDIO_AFTER_FINAL: "Audio after 'final: true' or 'close' is ignored.",
    ErrorCode.UNEXPECTED_MESSAGE: "This message has no place here: '{message}' {rule}.",
    ErrorCode.UNAUTHORIZED: "This server asks for a key: the first message is 'auth', with a 'token'.",
    ErrorCode.DRAINING: "This server is stopping; resume or connect elsewhere.",
    ErrorCode.RESUMED_ELSEWHERE: "The stream was resumed by another connection.",
}
_RULES: Final = {
    Event.CONFIG: ("config", "comes before all audio, and once"),
    Event.RESUME: ("resume", "is the first message of a connection"),
    Event.AUDIO: ("audio", "waits for 'resumed'"),
    Event.FINAL_AUDIO: ("audio", "waits for 'resumed'"),
    Event.CLOSE: ("close", "waits for 'resumed'"),
    Event.FINALIZE: ("finalize", "waits for 'resumed'"),
    Event.PHRASES: ("phrases", "waits for 'resumed'"),
}
_IGNORED: Final[tuple[Action, ...]] = ()
_ERROR_ONLY: Final = (Action.ERROR,)
_EVENT_OF: Final[dict[type, Event]] = {
    Close: Event.CLOSE,
    Finalize: Event.FINALIZE,
    Phrases: Event.PHRASES,
    Config: Event.CONFIG,
    Resume: Event.RESUME,
    Ping: Event.PING,
    Auth: Event.AUTH,
}


class Outcome(NamedTuple):
    """The actions to carry out, in order, with the message or the error that they are about."""

    actions: tuple[Action, ...]
    message: ClientMessage | None = None
    error: StreamError | None = None


class ConnectionProtocol:
    """The state of one connection, in any dialect.

    stranger: whether the client has to show a key first.
    """

    __slots__ = ("_fault", "state")

    def __init__(self, *, stranger: bool = False) -> None:
        self.state = State.STRANGER if stranger else State.ADMITTING
        self._fault: StreamError | None = None  # in FAILING: the error to send after the final result

    @property
    def deaf(self) -> bool:
        """Whether the client's messages are ignored."""
        return self.state in _DEAF

    @property
    def takes_audio(self) -> bool:
        """Whether the stream, begun or not, accepts audio."""
        return self.state in _ACCEPTING

    def receive(self, message: ClientMessage) -> Outcome:
        """Return the outcome of one message of the client."""
        if isinstance(message, Audio):
            return self._apply(Event.FINAL_AUDIO if message.final else Event.AUDIO, message)
        return self._apply(_EVENT_OF[type(message)], message)

    def fail(self, error: StreamError) -> Outcome:
        """Return the outcome of a malformed message, or of any other fault of the client."""
        if not error.closes:
            if self.deaf or self.state is State.REFUSED:
                return Outcome(_IGNORED)
            return Outcome(_ERROR_ONLY, None, error)
        return self._apply(Event.FAULT, None, error)

    def notify(self, event: Event, error: StreamError | None = None) -> Outcome:
        """Return the outcome of an event of the socket or of the service; `error`: why the service failed."""
        return self._apply(event, None, error)

    def _apply(
        self, event: Event, message: ClientMessage | None, error: StreamError | None = None
    ) -> Outcome:
        transition = TABLE[self.state].get(event)
        if transition is None:
            return Outcome(_IGNORED)
        if transition.error is not None:
            error = table_error(transition.error, event)
        if transition.state is not self.state:
            if (
                self.state is State.FAILING
                and Action.ERROR in transition.actions
                and transition.error is None
            ):
                error = self._fault
            elif transition.state is State.FAILING:
                self._fault = error
            self.state = transition.state
        return Outcome(transition.actions, message, error)


_ACCEPTING: Final = frozenset((State.READY, State.CONFIGURED, State.STREAMING))
_DEAF: Final = frozenset((State.FAILING, State.CLOSED))


def table_error(code: ErrorCode, event: Event) -> StreamError:
    """Return the error of a transition with an error code."""
    sentence = _SENTENCES[code]
    if event in _RULES and code is ErrorCode.UNEXPECTED_MESSAGE:
        message, rule = _RULES[event]
        sentence = sentence.format(message=message, rule=rule)
    return StreamError(code, sentence)
