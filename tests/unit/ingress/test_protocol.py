"""The table of states and events of a connection."""

from __future__ import annotations

import pytest

from common.errors import ERROR_SPECS, ClientFault, ErrorCode, NoFreeStream, RedisUnavailable, StreamError
from common.messages import Audio, Close, Config, Finalize, Phrases, Ping, Resume
from common.options import StreamOptions
from common.phrases import Phrase
from ingress.protocol import FORWARDING, ONLY_APPENDING, TABLE, Action, ConnectionProtocol, Event, State

_AUDIO = Audio(b"\0\0" * 10)
_FINAL = Audio(b"\0\0" * 5, final=True)
_BAD_JSON = ClientFault(ErrorCode.BAD_JSON, "This is not JSON.")
_RESUME = Resume(1, "t", 0, 0)


def _at(state: State) -> ConnectionProtocol:
    protocol = ConnectionProtocol()
    protocol.state = state
    return protocol


def test_the_table_keeps_the_promises_of_the_error_codes() -> None:
    for state, transitions in TABLE.items():
        for event, (target, actions, code) in transitions.items():
            place = f"{state.name} on {event.name}"
            closes = target is State.CLOSED
            if event is not Event.LOST:
                assert closes == (Action.HANG_UP in actions), f"{place}: it hangs up where it closes"
            if code is not None:
                fails = closes or target is State.FAILING
                assert ERROR_SPECS[code].closes is fails, f"{place}: whether {code} closes the connection"
            if closes and state in (State.CONFIGURED, State.STREAMING, State.FINISHING, State.FAILING):
                ends = {Action.ABANDON, Action.RELEASE} & set(actions)
                assert ends or event is Event.TAKEN, f"{place} leaves its stream behind"


def test_every_open_state_can_be_lost_drained_and_faulted() -> None:
    for state in State:
        if state is not State.CLOSED:
            assert {Event.LOST, Event.DRAIN} <= set(TABLE[state])
            assert (Event.FAULT in TABLE[state]) == (state is not State.FAILING)


def test_every_message_has_a_place_in_every_state_that_hears_messages() -> None:
    messages = {Event.AUDIO, Event.FINAL_AUDIO, Event.CLOSE, Event.FINALIZE}
    messages |= {Event.CONFIG, Event.RESUME, Event.PING}
    for state in (State.REFUSED, State.READY, State.CONFIGURED, State.STREAMING, State.FINISHING):
        assert (messages - {Event.RESUME} if state is State.REFUSED else messages) <= set(TABLE[state])


def test_the_ordinary_life_of_a_stream() -> None:
    protocol = ConnectionProtocol()
    assert protocol.notify(Event.ADMITTED).actions == (Action.HELLO,)
    assert protocol.receive(Ping()).actions == (Action.PONG,)
    assert protocol.state.name == "READY"
    config = Config(StreamOptions(words=True))
    outcome = protocol.receive(config)
    assert outcome.actions == (Action.BEGIN,)
    assert outcome.message == config
    assert protocol.receive(_AUDIO).actions == (Action.APPEND,)
    assert protocol.notify(Event.RESULT).actions == (Action.FORWARD,)
    assert protocol.receive(_FINAL).actions == (Action.APPEND,)
    assert protocol.state.name == "FINISHING"
    assert protocol.receive(Close()).actions == ()
    last = protocol.notify(Event.LAST_RESULT)
    assert last.actions == (Action.FORWARD, Action.RELEASE, Action.HANG_UP)
    assert protocol.state.name == "CLOSED"
    assert protocol.notify(Event.RESULT).actions == ()


def test_the_first_audio_begins_the_stream() -> None:
    assert _at(State.READY).receive(_AUDIO).actions == (Action.BEGIN, Action.APPEND)
    assert _at(State.READY).receive(_FINAL).actions == (Action.BEGIN, Action.APPEND)
    assert _at(State.READY).receive(Close()).actions == (Action.BEGIN, Action.FINISH)


@pytest.mark.parametrize("message", [Config(StreamOptions()), _RESUME])
def test_config_and_resume_come_first_or_not_at_all(message: Config | Resume) -> None:
    protocol = _at(State.CONFIGURED)
    outcome = protocol.receive(message)
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.UNEXPECTED_MESSAGE
    assert "{" not in outcome.error.message
    assert outcome.actions == (Action.ERROR, Action.ABANDON, Action.HANG_UP)
    assert protocol.state is State.CLOSED
    for state, actions in ((State.STREAMING, (Action.FINISH,)), (State.FINISHING, ())):
        protocol = _at(state)
        assert protocol.receive(message).actions == actions
        last = protocol.notify(Event.LAST_RESULT)
        assert last.error is not None
        assert last.error.code is ErrorCode.UNEXPECTED_MESSAGE


def test_audio_after_final_is_refused_and_the_final_still_comes() -> None:
    protocol = _at(State.FINISHING)
    outcome = protocol.receive(_AUDIO)
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.AUDIO_AFTER_FINAL
    assert Action.FORWARD in protocol.notify(Event.LAST_RESULT).actions


def test_a_message_of_unknown_type_does_no_harm() -> None:
    protocol = _at(State.STREAMING)
    fault = ClientFault(ErrorCode.UNKNOWN_TYPE, "There is no such type.")
    assert protocol.fail(fault).actions == (Action.ERROR,)
    assert protocol.state is State.STREAMING
    assert _at(State.CLOSED).fail(fault).actions == ()


@pytest.mark.parametrize("state", [State.READY, State.CONFIGURED])
def test_what_is_malformed_ends_the_stream(state: State) -> None:
    protocol = _at(state)
    outcome = protocol.fail(_BAD_JSON)
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.BAD_JSON
    assert outcome.actions[0] is Action.ERROR
    assert outcome.actions[-1] is Action.HANG_UP
    assert protocol.state is State.CLOSED


def _failing() -> ConnectionProtocol:
    protocol = _at(State.STREAMING)
    protocol.receive(_AUDIO)
    assert protocol.fail(_BAD_JSON).actions == (Action.FINISH,)
    return protocol


def test_the_final_of_what_came_before_a_fault_comes_before_the_error() -> None:
    protocol = _failing()
    assert protocol.deaf
    for _ in range(2):  # nothing that comes then changes the error
        assert protocol.fail(ClientFault(ErrorCode.FRAME_TOO_LONG, "It is too long.")).actions == ()
        assert protocol.receive(_AUDIO).actions == ()
        assert protocol.receive(Ping()).actions == ()
        assert protocol.notify(Event.END).actions == ()
    assert protocol.notify(Event.RESULT).actions == (Action.FORWARD,)
    outcome = protocol.notify(Event.LAST_RESULT)
    assert outcome.actions == (Action.FORWARD, Action.RELEASE, Action.ERROR, Action.HANG_UP)
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.BAD_JSON


@pytest.mark.parametrize("event", [Event.FAILED, Event.DRAIN, Event.STREAM_FAILED])
def test_where_the_final_cannot_come_the_fault_is_told_without_it(event: Event) -> None:
    outcome = _failing().notify(event, RedisUnavailable())
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.BAD_JSON
    assert outcome.actions[0] is Action.ERROR


def test_a_client_that_leaves_before_its_final_may_come_back_for_it() -> None:
    outcome = _failing().notify(Event.LOST)
    assert outcome.actions == (Action.ABANDON,)
    assert outcome.error is None  # which would end the stream for good


def test_an_error_of_the_worker_closes_with_its_code() -> None:
    error = StreamError(ErrorCode.WORKER_FAILED, "It could not.")
    outcome = _at(State.STREAMING).notify(Event.STREAM_FAILED, error)
    assert outcome.error is error
    assert outcome.actions == (Action.ERROR, Action.RELEASE, Action.HANG_UP)


def test_a_refused_client_may_resume_and_nothing_else() -> None:
    protocol = ConnectionProtocol()
    full = NoFreeStream()
    assert protocol.notify(Event.FULL, full).error is full
    assert protocol.receive(_AUDIO).actions == ()
    assert protocol.receive(_RESUME).actions == (Action.TAKE_OVER,)
    assert protocol.notify(Event.RESUMED).actions == (Action.WELCOME_BACK,)
    assert protocol.receive(_AUDIO).actions == (Action.APPEND,)


def test_a_refused_client_is_hung_up_on_when_its_time_is_over() -> None:
    protocol = _at(State.REFUSED)
    assert protocol.notify(Event.EXPIRED).actions == (Action.HANG_UP,)


def test_audio_waits_for_resumed() -> None:
    outcome = _at(State.RESUMING).receive(_AUDIO)
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.UNEXPECTED_MESSAGE


def test_a_stream_that_was_taken_is_not_abandoned() -> None:
    outcome = _at(State.STREAMING).notify(Event.TAKEN)
    assert outcome.actions == (Action.ERROR, Action.HANG_UP)


def test_failures_carry_the_services_error() -> None:
    error = RedisUnavailable()
    for state in (State.ADMITTING, State.READY, State.RESUMING, State.STREAMING, State.FINISHING):
        outcome = _at(state).notify(Event.FAILED, error)
        assert outcome.error is error
        assert outcome.actions[0] is Action.ERROR


def test_half_closing_finishes_and_losing_abandons() -> None:
    assert _at(State.STREAMING).notify(Event.END).actions == (Action.FINISH,)
    assert _at(State.STREAMING).notify(Event.LOST).actions == (Action.ABANDON,)
    assert _at(State.READY).notify(Event.LOST).actions == (Action.GIVE_BACK,)


def test_a_fault_that_ends_nothing_is_never_applied_to_the_table() -> None:
    protocol = _at(State.READY)
    protocol.fail(ClientFault(ErrorCode.UNKNOWN_TYPE, "There is no such type."))
    assert protocol.state is State.READY


def test_results_are_forwarded_where_the_table_says_so_and_change_nothing() -> None:
    for state in State:
        protocol = _at(state)
        outcome = protocol.notify(Event.RESULT)
        assert (protocol.state in FORWARDING) == (outcome.actions == (Action.FORWARD,))
        assert protocol.state is state


@pytest.mark.parametrize("state", list(State))
def test_audio_is_only_appended_where_the_table_says_so(state: State) -> None:
    protocol = _at(state)
    outcome = protocol.receive(_AUDIO)
    assert (state in ONLY_APPENDING) == (outcome.actions == (Action.APPEND,) and protocol.state is state)


def test_phrases_come_before_audio_or_within_it() -> None:
    change = Phrases((Phrase("Zyrtec"),))
    for state, actions, after in (
        (State.READY, (Action.BEGIN, Action.PHRASES), State.CONFIGURED),
        (State.CONFIGURED, (Action.PHRASES,), State.CONFIGURED),
        (State.STREAMING, (Action.PHRASES,), State.STREAMING),
        (State.FINISHING, (), State.FINISHING),
    ):
        protocol = _at(state)
        assert protocol.receive(change).actions == actions
        assert protocol.state is after
    outcome = _at(State.RESUMING).receive(change)
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.UNEXPECTED_MESSAGE


def test_finalize_begins_a_stream_and_ends_none() -> None:
    for state, actions in (
        (State.READY, (Action.BEGIN, Action.FINALIZE)),
        (State.CONFIGURED, (Action.FINALIZE,)),
        (State.STREAMING, (Action.FINALIZE,)),
    ):
        protocol = _at(state)
        assert protocol.receive(Finalize()).actions == actions
        assert protocol.state is State.STREAMING
    assert _at(State.FINISHING).receive(Finalize()).actions == ()
    outcome = _at(State.RESUMING).receive(Finalize())
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.UNEXPECTED_MESSAGE
