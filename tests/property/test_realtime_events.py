"""Whatever a realtime client sends, it is answered in shape, and the session goes on."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from common.messages import Audio, Finalize
from common.options import decode_options, encode_options
from tests.realtime_talk import Talk, append, silence, update

_NAMES = st.sampled_from(
    [
        *("type", "event_id", "session", "audio", "input", "format", "rate", "include", "transcription"),
        *("model", "language", "languages", "prompt", "keywords", "delay", "noise_reduction"),
        *("turn_detection", "threshold", "prefix_padding_ms", "silence_duration_ms", "eagerness"),
        *("input_audio_format", "input_audio_transcription", "input_audio_noise_reduction"),
    ]
)
_WORDS = st.sampled_from(
    [
        *(
            "transcription",
            "realtime",
            "server_vad",
            "semantic_vad",
            "low",
            "near_field",
            "g711_ulaw",
            "pcm16",
        ),
        *("audio/pcm", "audio/pcma", "item.input_audio_transcription.logprobs", "gpt-realtime-whisper"),
    ]
)
_LEAVES = st.none() | st.booleans() | st.integers(-1, 70_000) | st.floats(0, 2) | _WORDS | st.text(max_size=8)
_VALUES = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4)
)
_KINDS = st.sampled_from(
    [
        *("session.update", "transcription_session.update", "input_audio_buffer.append"),
        *("input_audio_buffer.commit", "input_audio_buffer.clear", "response.create", "weather"),
    ]
)
_INPUTS = st.dictionaries(_NAMES, _VALUES, max_size=5)
_EVENTS = st.one_of(
    _VALUES,
    st.builds(lambda kind, fields: {**fields, "type": kind}, _KINDS, _INPUTS),
    st.builds(lambda fields: update(**fields), _INPUTS),
    st.builds(lambda fields: {"type": "session.update", "session": fields}, _INPUTS),
    st.builds(lambda ms: append(silence(ms)), st.integers(0, 300)),
)


@given(st.lists(_EVENTS | st.binary(max_size=20), max_size=8))
def test_any_events_are_answered_in_shape_and_the_session_goes_on(events: list[Any]) -> None:
    talk = Talk()
    for event in events:
        talk.say(event if isinstance(event, bytes) else json.dumps(event).encode())
    assert [text for text in talk.complaints() if "format" not in text and "answers" not in text] == []
    # What the session is set to is what a worker can read.
    assert decode_options(encode_options(talk.dialect.options)) == talk.dialect.options
    talk.say({"type": "input_audio_buffer.clear"})
    rate = talk.dialect.options.sample_rate
    assert rate is not None
    before = len(talk.heard)
    num_faults = len(talk.faults())
    talk.say(append(silence(200, rate)), {"type": "input_audio_buffer.commit"})
    assert [type(message) for message in talk.heard[before:]] == [Audio, Finalize]
    assert len(talk.faults()) == num_faults
