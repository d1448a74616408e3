"""The table of states and events of a connection."""

from __future__ import annotations

import base64
import json

import pytest

from common.errors import ClientFault, ErrorCode, NoFreeStream, RedisUnavailable, StreamError
from common.messages import Audio, Close, Config, Ping, Resume
from common.options import StreamOptions
from ingress.protocol import TABLE, Action, ConnectionProtocol, Event, State, check_table

_AUDIO = Audio(b"\0\0" * 10)
_FINAL = Audio(b"\0\0" * 5, final=True)
_RESUME = Resume(1, "t", 0, 0)


def _at(state: State, max_buffered: int = 1000) -> ConnectionProtocol:
    protocol = ConnectionProtocol(16000, max_buffered)
    protocol.state = state
    return protocol


def test_the_table_keeps_the_promises_of_the_error_codes() -> None:
    check_table()


def test_every_open_state_can_be_lost_drained_and_faulted() -> None:
    for state in State:
        if state is not State.CLOSED:
            assert {Event.LOST, Event.DRAIN} <= set(TABLE[state])
            assert (Event.FAULT in TABLE[state]) == (state is not State.FAILING)


def test_every_message_has_a_place_in_every_state_that_hears_messages() -> None:
    messages = {Event.AUDIO, Event.FINAL_AUDIO, Event.CLOSE, Event.CONFIG, Event.RESUME, Event.PING}
    for state in (State.REFUSED, State.READY, State.CONFIGURED, State.STREAMING, State.FINISHING):
        assert (messages - {Event.RESUME} if state is State.REFUSED else messages) <= set(TABLE[state])


def test_the_ordinary_life_of_a_stream() -> None:
    protocol = ConnectionProtocol(16000, 1000)
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
    assert protocol.next_sample == 15
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
    protocol.next_sample = 15
    outcome = protocol.receive(_AUDIO)
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.AUDIO_AFTER_FINAL
    assert protocol.next_sample == 15
    assert Action.FORWARD in protocol.notify(Event.LAST_RESULT).actions


def test_audio_that_waits_is_bounded_and_decoded_audio_does_not_count() -> None:
    protocol = _at(State.READY, max_buffered=25)
    protocol.receive(_AUDIO)
    protocol.receive(_AUDIO)
    protocol.acknowledge(5)
    protocol.acknowledge(3)
    assert protocol.receive(_AUDIO).actions == (Action.APPEND,)
    outcome = protocol.receive(Audio(b"\0\0"))
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.TOO_MUCH_AUDIO
    assert outcome.actions == (Action.FINISH,)
    assert protocol.next_sample == 30


def test_a_message_of_unknown_type_does_no_harm() -> None:
    protocol = _at(State.STREAMING)
    outcome = protocol.receive_text(b'{"type":"weather"}')
    assert outcome.actions == (Action.ERROR,)
    assert protocol.state is State.STREAMING
    assert _at(State.CLOSED).receive_text(b'{"type":"weather"}').actions == ()


@pytest.mark.parametrize("state", [State.READY, State.CONFIGURED])
def test_what_is_malformed_ends_the_stream(state: State) -> None:
    protocol = _at(state)
    outcome = protocol.receive_text(b"{")
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.BAD_JSON
    assert outcome.actions[0] is Action.ERROR
    assert outcome.actions[-1] is Action.HANG_UP
    assert protocol.state is State.CLOSED


def _failing() -> ConnectionProtocol:
    protocol = _at(State.STREAMING)
    protocol.receive(_AUDIO)
    assert protocol.receive_text(b"{").actions == (Action.FINISH,)
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


def test_a_sample_may_be_cut_between_binary_frames() -> None:
    protocol = _at(State.READY)
    payloads = []
    for frame in (b"\1\2\3", b"\4", b"", b"\5", b"\6\7\x08"):
        outcome = protocol.receive_binary(frame)
        assert isinstance(outcome.message, Audio)
        payloads.append(outcome.message.payload)
    assert payloads == [b"\1\2", b"\3\4", b"", b"", b"\5\6\7\x08"]
    assert protocol.next_sample == 4


@pytest.mark.parametrize("after", [b'{"type":"close"}', b'{"type":"audio","data":"AAA="}'])
def test_half_a_sample_at_the_end_of_binary_frames_is_an_odd_byte_count(after: bytes) -> None:
    protocol = _at(State.READY)
    protocol.receive_binary(b"\1\2\3")
    assert protocol.receive_text(b'{"type":"ping"}').actions == (Action.PONG,)
    assert protocol.receive_text(after).actions == (Action.FINISH,)
    outcome = protocol.notify(Event.LAST_RESULT)
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.ODD_BYTE_COUNT


def test_a_message_in_a_binary_frame_is_told_apart_from_audio() -> None:
    for data in (b'{"type":"close"}', b' {\r\n "type": "audio", "data": "AAA="}\n'):
        outcome = _at(State.READY).receive_binary(data)
        assert outcome.error is not None
        assert outcome.error.code is ErrorCode.BAD_MESSAGE
        assert "text frames" in outcome.error.message
    for data in (b"{}", b'{"', b'{"type', b"  ", b"\n\n{ "):
        assert _at(State.READY).receive_binary(data).error is None


def test_blank_lines_and_text_frames_are_ignored_in_every_state() -> None:
    for state in State:
        protocol = _at(state)
        for data in (b"", b" ", b"\r", b" \t \r"):
            assert protocol.receive_text(data).actions == ()
        assert protocol.state is state


def test_text_and_binary_frames_are_counted_alike() -> None:
    protocol = _at(State.READY)
    text = json.dumps({"type": "audio", "data": base64.b64encode(b"\0" * 6).decode()})
    protocol.receive_text(text.encode())
    protocol.receive_binary(b"\0" * 4)
    assert protocol.next_sample == 5


def test_a_refused_client_may_resume_and_nothing_else() -> None:
    protocol = ConnectionProtocol(16000, 1000)
    full = NoFreeStream()
    assert protocol.notify(Event.FULL, full).error is full
    assert protocol.receive(_AUDIO).actions == ()
    assert protocol.receive(_RESUME).actions == (Action.TAKE_OVER,)
    protocol.resume_at(100, 80)
    assert protocol.notify(Event.RESUMED).actions == (Action.WELCOME_BACK,)
    protocol.receive(_AUDIO)
    assert protocol.next_sample == 110


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


def _message(num_samples: int, **more: object) -> bytes:
    data = base64.b64encode(b"\1\0" * num_samples).decode()
    return json.dumps({"type": "audio", "data": data, **more}).encode()


@pytest.mark.parametrize("state", list(State))
def test_the_short_cut_takes_what_the_table_would_only_append(state: State) -> None:
    known = _at(State.STREAMING)
    known.receive_text(_message(100))
    known.state = state
    audio = known.more_audio(_message(200))
    slow = _at(state)
    outcome = slow.receive_text(_message(200))
    if audio is None:
        assert outcome.actions != (Action.APPEND,) or slow.state is not state
        assert known.next_sample == 100
    else:
        assert (outcome.message, outcome.actions, slow.state) == (audio, (Action.APPEND,), state)
        assert known.next_sample == 300
        assert state is known.state


def test_the_short_cut_takes_nothing_that_is_not_like_the_last_or_too_much() -> None:
    protocol = _at(State.STREAMING, max_buffered=300)
    assert protocol.more_audio(_message(100)) is None  # no message has been seen
    protocol.receive_text(_message(100))
    for data in (_message(100, final=True), b'{"type":"close"}', _message(100)[:-1], _message(201)):
        assert protocol.more_audio(data) is None
    assert protocol.next_sample == 100
    assert protocol.more_audio(_message(200)) == Audio(b"\1\0" * 200)
    outcome = protocol.receive_text(_message(100))
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.TOO_MUCH_AUDIO


def test_results_are_forwarded_where_the_table_says_so_and_change_nothing() -> None:
    for state in State:
        protocol = _at(state)
        outcome = protocol.notify(Event.RESULT)
        assert protocol.forwards == (outcome.actions == (Action.FORWARD,))
        assert protocol.state is state


def test_no_more_shapes_are_learned_of_a_client_whose_messages_all_differ() -> None:
    protocol = _at(State.STREAMING, max_buffered=100_000)
    for number in range(30):
        protocol.receive_text(_message(100, at=number))
    assert protocol.more_audio(_message(100, at=29)) is None
    protocol = _at(State.STREAMING, max_buffered=100_000)
    for number in range(30):
        protocol.receive_text(_message(100, at=number))
        assert protocol.more_audio(_message(100, at=number)) is not None
