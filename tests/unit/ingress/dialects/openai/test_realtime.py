"""The events of clients: audio before and after its configuration, faults, and how a session ends."""

from __future__ import annotations

import json

import pytest

from common.errors import ErrorCode, StreamError
from common.languages import ENGLISH, Languages
from common.messages import Ack, Audio, Encoding, Finalize, Phrases, Pong, WarningMessage
from common.phrases import Phrase
from ingress.auth.client import Client
from ingress.dialects.openai.realtime import RealtimeDialect
from ingress.dialects.openai.session import Session
from ingress.http.refusal import Refused
from ingress.request import Request
from tests.realtime_talk import RATE, Talk, append, silence, update

_COMMIT = {"type": "input_audio_buffer.commit"}


def _of(query: str = "", *headers: tuple[str, str]) -> Talk:
    return Talk(RealtimeDialect.of(Request("GET", "/v1/realtime", query, headers, "::1")))


def test_a_session_is_shown_when_it_begins_and_when_it_changes() -> None:
    talk = Talk()
    talk.say(update(transcription={"model": "gpt-4o-transcribe", "language": "en"}))
    assert talk.kinds == ["session.created", "session.updated"]
    created, changed = (event["session"] for event in talk.events)
    assert created["id"] == changed["id"] == "sess_7"
    assert created["audio"]["input"]["turn_detection"]["type"] == "server_vad"
    assert changed["audio"]["input"]["transcription"]["language"] == "en"
    assert talk.complaints() == []


@pytest.mark.parametrize(
    "headers",
    [("openai-beta", "realtime=v1"), ("sec-websocket-protocol", "realtime, openai-beta.realtime-v1")],
)
def test_the_beta_is_asked_for_by_a_header_or_a_subprotocol(headers: tuple[str, str]) -> None:
    talk = _of("model=gpt-4o-transcribe", headers)
    talk.say({"type": "transcription_session.update", "session": {"turn_detection": None}})
    assert talk.kinds == ["transcription_session.created", "transcription_session.updated"]
    session = talk.events[0]["session"]
    assert session["input_audio_format"] == "pcm16"
    assert session["client_secret"] is None
    assert session["input_audio_transcription"]["model"] == "gpt-4o-transcribe"
    assert talk.complaints() == []


def test_the_model_of_the_address_is_the_sessions() -> None:
    talk = _of("intent=transcription&model=gpt-realtime-whisper")
    shown = talk.events[0]["session"]["audio"]["input"]
    assert shown["transcription"]["model"] == "gpt-realtime-whisper"
    assert shown["turn_detection"] is None
    assert _of("intent=transcription&model=").events[0]["session"]["audio"]["input"]["turn_detection"]


def test_a_secret_brings_its_session_along() -> None:
    shown = Session().updated(update(format={"type": "audio/pcma"}, turn_detection=None)["session"]).shown()
    client = Client(by_token=True, session=json.dumps({"type": "transcription", **shown}))
    talk = Talk(RealtimeDialect.of(Request("GET", "/v1/realtime", "model=other", (), "::1", client)))
    assert talk.events[0]["session"]["audio"] == shown["audio"]
    assert talk.say(append(b"\1")) == [Audio(b"\1", Encoding.ALAW)]


_MULTILINGUAL = Languages(("en-US", "de-DE"), prompted=True)


def _talk(languages: Languages) -> Talk:
    return Talk(RealtimeDialect(Session(), languages=languages))


@pytest.mark.parametrize(
    ("languages", "fields", "option"),
    [
        (_MULTILINGUAL, {"language": "de"}, "de-DE"),
        (_MULTILINGUAL, {"languages": ["de"]}, "de-DE"),
        (_MULTILINGUAL, {"languages": ["de", "en"]}, None),
        (_MULTILINGUAL, {"language": "en", "languages": ["de", "en"]}, "en-US"),
        (ENGLISH, {"language": "en"}, None),
        (Languages(), {"language": "fr"}, None),
    ],
)
def test_the_language_of_a_session_is_the_streams(
    languages: Languages, fields: dict[str, object], option: str | None
) -> None:
    talk = _talk(languages)
    talk.say(update(transcription=fields))
    assert talk.kinds[-1] == "session.updated"
    assert talk.dialect.options.language == option


@pytest.mark.parametrize(("field", "value"), [("language", "fr"), ("languages", ["en", "fr"])])
def test_a_language_that_the_model_does_not_have_is_an_error_and_changes_nothing(
    field: str, value: object
) -> None:
    talk = _talk(ENGLISH)
    talk.say(update(transcription={field: value, "model": "other"}))
    error = talk.events[-1]["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")
    assert error["param"] == f"session.audio.input.transcription.{field}"
    assert error["message"] == 'The model does not have the language "fr"; it has en.'
    talk.say(
        {"type": "transcription_session.update", "session": {"input_audio_transcription": {field: value}}}
    )
    assert talk.events[-1]["error"]["param"] == f"session.input_audio_transcription.{field}"
    talk.say(update())
    assert talk.events[-1]["session"]["audio"]["input"]["transcription"]["model"] == "parakeet"


def test_a_session_with_audio_keeps_its_language() -> None:
    talk = _talk(_MULTILINGUAL)
    talk.say(update(transcription={"language": "en"}), append(bytes(480)))
    talk.say(update(transcription={"language": "en-GB"}))  # which the model has no other name for
    assert talk.kinds[-1] == "session.updated"
    talk.say(update(transcription={"language": "de"}))
    assert talk.events[-1]["error"]["param"] == "session.audio.input.transcription.language"
    assert talk.dialect.options.language == "en-US"


def test_a_secret_with_a_language_that_the_model_does_not_have_opens_no_session() -> None:
    session = {"type": "transcription", "audio": {"input": {"transcription": {"language": "fr"}}}}
    client = Client(by_token=True, session=json.dumps(session))
    with pytest.raises(Refused) as error:
        RealtimeDialect.of(Request("GET", "/v1/realtime", "", (), "::1", client), ENGLISH)
    assert error.value.refusal.status == 400
    assert json.loads(error.value.refusal.content)["error"]["message"].startswith("The model does not have")


def test_audio_waits_for_its_configuration() -> None:
    talk = Talk()
    assert talk.say(append(b"\x01"), append(b"\x02\x03"), append(b"")) == []
    (audio,) = talk.say(update(format={"type": "audio/pcmu"}))
    assert audio == Audio(b"\x01\x02\x03", Encoding.MULAW)
    assert talk.dialect.options.encoding == "mulaw"
    assert talk.dialect.options.sample_rate == 8000
    assert talk.kinds[-1] == "session.updated"
    assert talk.say(append(b"\x04")) == [Audio(b"\x04", Encoding.MULAW)]


def test_audio_that_nobody_configures_is_taken_as_it_is_by_default() -> None:
    talk = Talk()
    first, second = silence(999), silence(1)
    assert talk.say(append(first)) == []
    assert talk.say(append(second)) == [Audio(first + second)]
    assert talk.dialect.options.auto_finalize
    assert talk.say(append(second)) == [Audio(second)]


def test_a_commit_ends_the_wait_for_a_configuration() -> None:
    talk = Talk()
    pcm = silence(200)
    assert talk.say(append(pcm), _COMMIT) == [Audio(pcm), Finalize()]
    talk = Talk()
    assert talk.say(append(silence(20)), _COMMIT) == [Audio(silence(20))]
    assert talk.faults()[0]["code"] == "input_audio_buffer_commit_empty"


def test_a_clear_drops_audio_that_waits() -> None:
    talk = Talk()
    assert talk.say(append(silence(500)), {"type": "input_audio_buffer.clear"}) == []
    assert talk.say(update(turn_detection=None), append(b"\1\0")) == [Audio(b"\1\0")]


def test_samples_may_be_cut_between_events_and_half_a_sample_is_dropped_at_a_commit() -> None:
    talk = Talk()
    talk.say(update(turn_detection=None))
    pcm = bytes(range(200)) * 48
    talk.say(append(pcm[:4801]), append(pcm[4801:]), append(b"\x07"), _COMMIT)
    assert talk.payload() == pcm
    assert talk.say(append(b"\1\0\2\0")) == [Audio(b"\1\0\2\0")]
    assert talk.faults() == []


def test_events_that_are_alike_are_read_like_any_other() -> None:
    talk = Talk()
    talk.say(update(turn_detection=None))
    pcm = bytes(range(250)) * 10
    for number in range(30):
        assert talk.say(append(pcm)) == [Audio(pcm)]
        assert talk.say(append(pcm, event_id=f"mine-{number}")) == [Audio(pcm)]
        assert talk.say(append(b"")) == []
    assert talk.say(_COMMIT) == [Finalize()]
    committed_ms = 60 * len(pcm) // 2 * 1000 // RATE
    talk.result("", committed_ms, answer=True)
    assert talk.events[-1]["usage"]["seconds"] == pytest.approx(committed_ms / 1000)
    assert talk.dialect._shape is None or talk.dialect._shapes_in_vain <= 8


@pytest.mark.parametrize(
    ("event", "code", "param"),
    [
        (b"not json", "invalid_json", None),
        (b"\xff\xfe", "invalid_json", None),
        (b"[1]", "invalid_json", None),
        (b"[" * 100_000, "invalid_json", None),
        ({"event_id": "e"}, "missing_required_parameter", "type"),
        ({"type": 3}, "missing_required_parameter", "type"),
        ({"type": "response.create"}, "invalid_value", "type"),
        ({"type": "conversation.item.create", "item": {}}, "invalid_value", "type"),
        ({"type": "weather"}, "invalid_value", "type"),
        ({"type": "input_audio_buffer.append"}, "missing_required_parameter", "audio"),
        ({"type": "input_audio_buffer.append", "audio": 5}, "missing_required_parameter", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "AA A"}, "invalid_value", "audio"),
        ({"type": "session.update"}, "missing_required_parameter", "session"),
        ({"type": "session.update", "session": {"type": "realtime"}}, "invalid_value", "session.type"),
    ],
)
def test_a_fault_is_told_and_the_session_goes_on(
    event: dict[str, object] | bytes, code: str, param: str | None
) -> None:
    talk = Talk()
    if isinstance(event, dict):
        event = {"event_id": "mine", **event}
    assert talk.say(event) == []
    (fault,) = talk.faults()
    assert (fault["type"], fault["code"], fault["param"]) == ("invalid_request_error", code, param)
    assert fault["event_id"] == (event["event_id"] if isinstance(event, dict) else None)
    talk.said.clear()
    talk.say(update(turn_detection=None))
    assert talk.say(append(silence(200)), _COMMIT) == [Audio(silence(200)), Finalize()]
    assert len(talk.faults()) == 1
    assert talk.complaints() == []


def test_a_binary_frame_is_a_fault() -> None:
    talk = Talk()
    assert talk.dialect.decode_binary(b"\0\0") is None
    (frame,) = talk.dialect.replies
    assert "base64" in json.loads(frame.data)["error"]["message"]


@pytest.mark.parametrize("early", [False, True])
def test_a_container_is_no_audio(early: bool) -> None:
    talk = Talk()
    if not early:
        talk.say(update(turn_detection=None))
    talk.say(append(b"RIFF\x24\0\0\0WAVEfmt " + bytes(100)))
    if early:
        talk.say(update(turn_detection=None))
    (fault,) = talk.faults()
    assert fault["code"] == "invalid_value"
    assert "WAV" in fault["message"]
    assert talk.payload() == b""


def test_what_a_stream_cannot_change_is_refused_once_it_has_audio() -> None:
    talk = Talk()
    talk.say(update(turn_detection={"type": "server_vad", "silence_duration_ms": 500}), append(silence(100)))
    begun = talk.events[-1]["session"]
    for event, param in (
        (update(format={"type": "audio/pcma"}), "session.audio.input.format"),
        (
            update(turn_detection={"type": "server_vad", "silence_duration_ms": 700}),
            "session.audio.input.turn_detection",
        ),
        (update(turn_detection={"type": "semantic_vad"}), "session.audio.input.turn_detection"),
        (
            {
                "type": "session.update",
                "session": {"type": "transcription", "include": ["item.input_audio_transcription.logprobs"]},
            },
            "session.include",
        ),
    ):
        assert talk.say(event) == []
        assert talk.faults()[-1]["param"] == param
    num_faults = len(talk.faults())
    talk.say(update(turn_detection={"type": "server_vad", "prefix_padding_ms": 100}))
    talk.say(update(transcription={"language": "de"}), update(turn_detection=None))
    talk.say(update(turn_detection={"type": "server_vad", "silence_duration_ms": 500}))
    assert len(talk.faults()) == num_faults
    assert talk.events[-1]["session"]["audio"]["input"]["format"] == begun["audio"]["input"]["format"]


def test_detection_is_not_turned_on_where_the_stream_began_without() -> None:
    talk = Talk()
    talk.say(update(turn_detection=None), append(silence(100)))
    talk.say(update(turn_detection={"type": "server_vad"}))
    assert talk.faults()[-1]["param"] == "session.audio.input.turn_detection"


def test_keywords_are_phrases_of_the_stream_at_any_time() -> None:
    talk = Talk()
    assert talk.say(update(transcription={"keywords": ["Ada Lovelace"]})) == []
    assert talk.dialect.options.phrases == (Phrase("Ada Lovelace", optional=True),)
    talk.say(append(silence(100)))
    heard = talk.say(update(transcription={"keywords": ["Charles Babbage", "Ada"]}))
    assert heard == [Phrases((Phrase("Charles Babbage", optional=True), Phrase("Ada", optional=True)))]
    assert talk.say(update(transcription={"prompt": "They speak of what they have built."})) == []
    assert talk.say(update(transcription={"keywords": []})) == [Phrases(())]
    heard = talk.say(update(transcription={"prompt": "Analytical Engine, Bernoulli"}))
    assert heard == [
        Phrases((Phrase("Analytical Engine", optional=True), Phrase("Bernoulli", optional=True)))
    ]


def test_messages_that_this_protocol_has_no_words_for() -> None:
    talk = Talk()
    for message in (Ack(5), Pong(), WarningMessage("integer_scale", "It is loud.")):
        assert talk.tell(message) == []


@pytest.mark.parametrize(
    ("code", "told", "close_code"),
    [
        (ErrorCode.NO_FREE_STREAM, None, 1013),
        (ErrorCode.NO_WORKER, None, 1013),
        (ErrorCode.OVER_LIMIT, None, 1013),
        (ErrorCode.REDIS_UNAVAILABLE, None, 1013),
        (ErrorCode.WORKER_FAILED, None, 1013),
        (ErrorCode.DRAINING, None, 1012),
        (ErrorCode.INTERNAL, None, 1011),
        (ErrorCode.UNAUTHORIZED, "invalid_api_key", 1008),
        (ErrorCode.IDLE_TIMEOUT, "session_expired", 1008),
        (ErrorCode.TOO_MUCH_AUDIO, "too_much_audio", 1008),
        (ErrorCode.FRAME_TOO_LONG, "frame_too_long", 1009),
    ],
)
def test_only_faults_of_the_client_are_error_events(
    code: ErrorCode, told: str | None, close_code: int
) -> None:
    talk = Talk()
    talk.error(code)
    assert [fault["code"] for fault in talk.faults()] == ([] if told is None else [told])
    farewell = talk.dialect.farewell(StreamError(code, "A sentence."))
    assert (farewell.code, farewell.reason) == (close_code, code.value)
    assert talk.dialect.farewell(None).code == 1000
    assert talk.complaints() == []
