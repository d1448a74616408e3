"""Updates of a session, in both shapes: what is taken, shown, refused, and asked of a stream."""

from __future__ import annotations

from typing import Any

import pytest

from common.options import StreamOptions
from common.phrases import Phrase
from ingress.dialects.openai.faults import EventFault
from ingress.dialects.openai.session import LOGPROBS, Session
from ingress.dialects.openai.turns import SemanticVad, ServerVad


def _input(**fields: object) -> dict[str, Any]:
    return {"type": "transcription", "audio": {"input": fields}}


def _fault(value: object) -> EventFault:
    with pytest.raises(EventFault) as caught:
        Session().updated(value)
    return caught.value


def test_a_session_of_which_nothing_was_said_is_cut_by_silence() -> None:
    session = Session()
    assert session.turns == ServerVad(0.5, 300, 500)
    assert session.options == StreamOptions(
        sample_rate=24000,
        turn_detection=True,
        auto_finalize=True,
        turn_signals="vad",
        vad_threshold=0.5,
        turn_silence_ms=500,
        turn_max_pause_ms=500,
    )


@pytest.mark.parametrize(
    ("value", "encoding", "rate"),
    [
        ({"type": "audio/pcm", "rate": 24000}, "pcm16", 24000),
        ({"type": "audio/pcm"}, "pcm16", 24000),
        ({"type": "audio/pcm", "rate": 16000}, "pcm16", 16000),
        ({"type": "audio/pcmu"}, "mulaw", 8000),
        ({"type": "audio/pcma", "rate": 8000}, "alaw", 8000),
    ],
)
def test_formats(value: dict[str, object], encoding: str, rate: int) -> None:
    session = Session().updated(_input(format=value))
    assert (session.options.encoding, session.options.sample_rate) == (encoding, rate)
    shown = session.shown()["audio"]["input"]["format"]
    assert Session().updated(_input(format=shown)) == session


@pytest.mark.parametrize(
    ("name", "encoding", "rate"),
    [("pcm16", "pcm16", 24000), ("g711_ulaw", "mulaw", 8000), ("g711_alaw", "alaw", 8000)],
)
def test_formats_of_the_beta(name: str, encoding: str, rate: int) -> None:
    session = Session().updated({"input_audio_format": name})
    assert (session.options.encoding, session.options.sample_rate) == (encoding, rate)
    assert session.shown_in_beta()["input_audio_format"] == name


def test_only_what_is_named_changes_and_null_turns_off() -> None:
    first = Session().updated(
        _input(
            transcription={"model": "m", "language": "en", "prompt": "engines", "delay": "low"},
            noise_reduction={"type": "near_field", "strength": 0.5},
            turn_detection={"type": "server_vad", "threshold": 0.6, "silence_duration_ms": 350},
        )
    )
    assert first.turns == ServerVad(0.6, 300, 350)
    second = first.updated(_input(transcription={"keywords": ["Ada  Lovelace"]}, noise_reduction=None))
    assert second.noise_reduction is None
    assert second.turns == first.turns
    assert (second.model, second.hints.language, second.hints.prompt) == ("m", "en", "engines")
    assert second.phrases == second.options.phrases
    assert second.phrases == (Phrase("Ada Lovelace", optional=True), Phrase("engines", optional=True))
    third = second.updated(_input(turn_detection={"type": "server_vad", "threshold": 0.7}))
    assert third.turns == ServerVad(0.7, 300, 350)
    fourth = third.updated(_input(turn_detection=None, transcription=None))
    assert fourth.turns is None
    assert fourth.phrases == ()
    assert fourth.options == StreamOptions(sample_rate=24000, turn_detection=False)
    shown = fourth.shown()["audio"]["input"]
    assert shown["turn_detection"] is None
    assert shown["transcription"] == {"model": "m", "language": None, "prompt": None}


@pytest.mark.parametrize(
    ("eagerness", "longest_ms"), [("low", 8000), ("medium", 4000), ("high", 2000), ("auto", 4000)]
)
def test_semantic_vad_is_our_turn_detector(eagerness: str, longest_ms: int) -> None:
    value = {"type": "semantic_vad", "eagerness": eagerness}
    session = Session().updated(_input(turn_detection=value))
    assert session.turns == SemanticVad(eagerness)
    assert session.options.turn_signals == "vad+eou+smart_turn"
    assert session.options.turn_max_pause_ms == longest_ms
    assert session.options.turn_silence_ms is None
    assert session.shown()["audio"]["input"]["turn_detection"] == value


@pytest.mark.parametrize("model", ["gpt-realtime-whisper", "gpt-live-transcribe"])
def test_two_models_leave_the_cuts_to_the_client_where_it_says_nothing_of_them(model: str) -> None:
    session = Session().updated(_input(transcription={"model": model}))
    assert session.turns is None
    assert session.updated(_input(turn_detection={"type": "server_vad"})).turns == ServerVad()
    assert Session().named(model).turns is None


def test_the_threshold_is_kept_within_what_the_detector_takes() -> None:
    for threshold, meant in ((0, 0.05), (1, 0.95), (0.3, 0.3)):
        session = Session().updated(_input(turn_detection={"type": "server_vad", "threshold": threshold}))
        assert session.options.vad_threshold == meant


def test_log_probabilities_need_words() -> None:
    session = Session().updated({"type": "transcription", "include": [LOGPROBS]})
    assert session.options.words
    assert session.shown()["include"] == [LOGPROBS]
    assert Session().updated({"include": [LOGPROBS], "input_audio_format": "pcm16"}).options.words


def test_unknown_fields_are_ignored() -> None:
    value = _input(echo={"cancel": True}, transcription={"model": "m", "diarize": True})
    session = Session().updated(value | {"tracing": "auto"})
    assert session.model == "m"


@pytest.mark.parametrize(
    ("value", "param"),
    [
        (None, "session"),
        ([], "session"),
        ({"type": "realtime"}, "session.type"),
        ({"type": "transcription", "audio": 1}, "session.audio"),
        ({"type": "transcription", "audio": {"input": "x"}}, "session.audio.input"),
        (_input(format="pcm16"), "session.audio.input.format.type"),
        (_input(format={"type": "audio/opus"}), "session.audio.input.format.type"),
        (_input(format={"type": "audio/pcm", "rate": 4000}), "session.audio.input.format.rate"),
        (_input(format={"type": "audio/pcm", "rate": "24000"}), "session.audio.input.format.rate"),
        (_input(format={"type": "audio/pcmu", "rate": 16000}), "session.audio.input.format.rate"),
        (_input(transcription=[]), "session.audio.input.transcription"),
        (_input(transcription={"model": 3}), "session.audio.input.transcription.model"),
        (_input(transcription={"delay": "soon"}), "session.audio.input.transcription.delay"),
        (_input(transcription={"prompt": "x" * 20_000}), "session.audio.input.transcription.prompt"),
        (_input(transcription={"keywords": "x"}), "session.audio.input.transcription.keywords"),
        (_input(transcription={"keywords": [" "]}), "session.audio.input.transcription.keywords"),
        (_input(transcription={"keywords": ["x"] * 600}), "session.audio.input.transcription.keywords"),
        (_input(transcription={"languages": [1]}), "session.audio.input.transcription.languages"),
        (_input(noise_reduction={"type": "loud"}), "session.audio.input.noise_reduction.type"),
        (_input(turn_detection="server_vad"), "session.audio.input.turn_detection"),
        (_input(turn_detection={"type": "none"}), "session.audio.input.turn_detection.type"),
        (
            _input(turn_detection={"type": "server_vad", "threshold": 2}),
            "session.audio.input.turn_detection.threshold",
        ),
        (
            _input(turn_detection={"type": "server_vad", "silence_duration_ms": 0}),
            "session.audio.input.turn_detection.silence_duration_ms",
        ),
        (
            _input(turn_detection={"type": "server_vad", "prefix_padding_ms": True}),
            "session.audio.input.turn_detection.prefix_padding_ms",
        ),
        (
            _input(turn_detection={"type": "semantic_vad", "eagerness": "very"}),
            "session.audio.input.turn_detection.eagerness",
        ),
        ({"type": "transcription", "include": "logprobs"}, "session.include"),
        ({"input_audio_format": "pcm24"}, "session.input_audio_format"),
        ({"turn_detection": 7}, "session.turn_detection"),
        ({"input_audio_transcription": 7}, "session.input_audio_transcription"),
    ],
)
def test_what_is_wrong_is_named(value: object, param: str) -> None:
    fault = _fault(value)
    assert fault.param == param
    assert fault.code in ("invalid_value", "missing_required_parameter")
    assert f"'{param}'" in fault.message
