"""Deepgram's protocol on one connection: bytes in, messages out, and back."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from typing import Any

import pytest

from common.errors import ClientFault, ErrorCode, NoFreeStream, RedisUnavailable, StreamError
from common.languages import Languages
from common.messages import (
    Ack,
    Audio,
    Close,
    Encoding,
    ErrorMessage,
    Finalize,
    Hello,
    Phrases,
    Result,
    ServerMessage,
    Utterance,
    Word,
)
from common.phrases import Phrase
from ingress.dialects.deepgram.dialect import DeepgramDialect
from ingress.dialects.deepgram.query import parse_listen_query
from ingress.dialects.dialect import Frame
from ingress.media.wanted import Media
from tests.fake_backplane import some_result

_RAW = "encoding=linear16&sample_rate=16000"


def _dialect(more: str = "", raw: str = _RAW) -> DeepgramDialect:
    return DeepgramDialect(parse_listen_query(f"{raw}&{more}"))


def _said(dialect: DeepgramDialect, message: ServerMessage, stream: int = 0) -> list[dict[str, Any]]:
    return [json.loads(frame.data) for frame in dialect.encode(message, stream)]


def _replies(dialect: DeepgramDialect) -> list[dict[str, Any]]:
    replies, dialect.replies = dialect.replies, []
    return [json.loads(frame.data) for frame in replies]


def _utterance(seq: int, text: str, end_s: float, heard_s: float) -> Result:
    word = Word(text, end_s - 0.3, end_s, 0.8)
    return some_result(
        seq, text, words=(word,), utterances=(Utterance(1, text, 0.0, end_s),), acked=round(heard_s * 16000)
    )


def test_what_the_client_says() -> None:
    dialect = _dialect()
    assert dialect.decode_binary(b"\1\0\2\0") == Audio(b"\1\0\2\0")
    assert dialect.decode_text(b'{"type":"KeepAlive"}') is None
    assert dialect.decode_text(b'{"type":"Finalize","channel":0}') == Finalize()
    assert dialect.decode_text(b'{"type":"CloseStream"}') == Close()
    assert dialect.decode_binary(b"") == Close()
    assert dialect.replies == []


@pytest.mark.parametrize(
    "data", [b"hello", b"[1]", b'{"type":"Nonsense"}', b'{"a":1}', b"\xff", b"", b"1" * 5000]
)
def test_what_is_no_message_is_answered_and_the_stream_goes_on(data: bytes) -> None:
    dialect = _dialect()
    assert dialect.decode_text(data) is None
    (error,) = _replies(dialect)
    assert (error["type"], error["variant"]) == ("Error", "SchemaError")
    assert error["message"] == data[:200].decode(errors="replace")
    assert dialect.decode_binary(b"\0\0") == Audio(b"\0\0")


def test_samples_are_cut_anywhere_and_channels_are_mixed() -> None:
    dialect = _dialect("channels=2")
    payload = struct.pack("<6h", 100, 300, -5, -7, 32767, 32767)
    got = [dialect.decode_binary(payload[at : at + 3]) for at in range(0, len(payload), 3)]
    assert got == [None] * 4  # a passage is kept until it is whole, or the audio ends
    assert dialect.decode_text(b'{"type":"Finalize"}') == [
        Audio(struct.pack("<3h", 200, -6, 32767)),
        Finalize(),
    ]
    for end in (b"", b'{"type":"CloseStream"}'):
        assert dialect.decode_binary(payload[:4]) is None
        ended = dialect.decode_text(end) if end else dialect.decode_binary(end)
        assert ended == [Audio(struct.pack("<h", 200)), Close()]
    assert dialect.decode_text(b'{"type":"CloseStream"}') == Close()  # nothing is kept any more
    assert dialect.num_streams == 1
    separate = _dialect("channels=2&multichannel=true")
    assert separate.num_streams == 2
    assert separate.decode_binary(payload) == Audio(payload)


def test_a_recording_with_its_head_is_taken_and_other_containers_are_told() -> None:
    head = b"RIFF\x24\0\0\0WAVEfmt " + bytes(28)
    assert isinstance(_dialect().decode_binary(head), Audio)
    with pytest.raises(ClientFault) as caught:
        _dialect().decode_binary(b"fLaC" + bytes(100))
    assert caught.value.code is ErrorCode.WRONG_ENCODING


def test_packets_and_containers_are_handed_on_as_they_come() -> None:
    packets = _dialect(raw="encoding=opus&sample_rate=48000")
    assert packets.decode_binary(b"abc") == Media(b"\0\3abc")
    assert packets.decode_binary(b"") == Close()
    with pytest.raises(ClientFault):
        packets.decode_binary(bytes(65536))
    assert _dialect(raw="").decode_binary(b"RIFF") == Media(b"RIFF")


def test_the_upgrade_carries_the_request_id_and_nobody_is_told_hello() -> None:
    dialect = _dialect()
    ((name, request_id),) = dialect.headers
    assert name == "dg-request-id"
    assert dialect.encode(Hello(1, 16000, "secret", ()), 0) == ()
    (result,) = _said(dialect, some_result(1, "go", final=True, acked=16000))[:1]
    assert result["metadata"]["request_id"] == request_id


def test_a_final_has_all_that_clients_read() -> None:
    dialect = _dialect()
    assert _said(dialect, some_result(1, "hel", acked=1600)) == []  # no interim results were asked for
    (final,) = _said(dialect, _utterance(2, "Hello.", 0.9, 1.5))
    metadata = final.pop("metadata")
    assert final == {
        "type": "Results",
        "channel_index": [0, 1],
        "start": 0.0,
        "duration": 0.9,
        "is_final": True,
        "speech_final": True,
        "from_finalize": False,
        "channel": {
            "alternatives": [
                {
                    "transcript": "Hello.",
                    "confidence": 0.8,
                    "words": [
                        {
                            "word": "hello",
                            "start": pytest.approx(0.6),
                            "end": 0.9,
                            "confidence": 0.8,
                            "punctuated_word": "Hello.",
                        }
                    ],
                }
            ]
        },
    }
    assert set(metadata) == {"request_id", "model_info", "model_uuid"}
    assert set(metadata["model_info"]) == {"name", "version", "arch"}


def test_interim_results_and_the_start_of_speech() -> None:
    dialect = _dialect("interim_results=true&vad_events=true")
    start = replace(some_result(1, "go", acked=16000), turn_detection="start_of_utterance")
    started, interim = _said(dialect, start)
    assert started == {"type": "SpeechStarted", "channel": [0, 1], "timestamp": 0.9}
    assert (interim["is_final"], interim["speech_final"], interim["duration"]) == (False, False, 1.0)
    assert interim["channel"]["alternatives"][0]["transcript"] == "go"


def test_without_endpointing_no_final_ends_speech_but_the_last() -> None:
    dialect = _dialect("endpointing=false")
    (final,) = _said(dialect, _utterance(1, "go", 0.9, 1.5))
    assert (final["is_final"], final["speech_final"]) == (True, False)
    (answer,) = _said(dialect, replace(some_result(2, "go on", acked=32000), from_finalize=True))
    assert (answer["speech_final"], answer["from_finalize"]) == (True, True)
    assert answer["channel"]["alternatives"][0]["transcript"] == "on"


def test_the_end_of_an_utterance_is_told_once_after_the_silence() -> None:
    dialect = _dialect("utterance_end_ms=1000&interim_results=true")
    _said(dialect, _utterance(1, "go", 1.0, 1.5))
    assert _said(dialect, Ack(round(1.9 * 16000))) == []
    assert _said(dialect, Ack(2 * 16000)) == [
        {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": 1.0}
    ]
    assert _said(dialect, Ack(4 * 16000)) == []
    # Not where words have been heard since.
    dialect = _dialect("utterance_end_ms=1000&interim_results=true")
    _said(dialect, _utterance(1, "go", 1.0, 1.5))
    _said(dialect, some_result(2, "go on", acked=28800))
    assert _said(dialect, Ack(4 * 16000)) == []


def test_the_last_final_is_followed_by_metadata() -> None:
    dialect = _dialect("channels=2&multichannel=true")
    payload = struct.pack("<4h", 1, 2, 3, 4)
    dialect.decode_binary(payload)
    (first,) = _said(dialect, some_result(1, "left", final=True, acked=16000), 0)
    last, metadata = _said(dialect, some_result(1, "right", final=True, acked=16000), 1)
    assert (first["channel_index"], last["channel_index"]) == ([0, 2], [1, 2])
    assert metadata.pop("created").endswith("Z")
    assert metadata == {
        "type": "Metadata",
        "transaction_key": "deprecated",
        "request_id": dialect.headers[0][1],
        "sha256": hashlib.sha256(payload).hexdigest(),
        "duration": 1.0,
        "channels": 2,
    }
    assert dialect.farewell(None)[1:] == (1000, "")


def test_interim_results_of_a_slow_reader_become_the_latest() -> None:
    dialect = _dialect("interim_results=true&vad_events=true")
    (one,) = dialect.encode(some_result(1, "go"), 0)
    (two,) = dialect.encode(some_result(2, "go on"), 0)
    assert dialect.merge(one.says, two.says) == Frame(two.data, two.says)
    (final,) = dialect.encode(_utterance(3, "go on", 0.9, 1.5), 0)
    assert final.says is None


def test_keyterms_that_the_model_cannot_write_are_not_among_those_in_effect() -> None:
    query = parse_listen_query(_RAW, Languages(("en",), letters="CRabcdefghiklmnoprstu"))
    dialect = DeepgramDialect(query)
    message = {"type": "Configure", "keyterms": ["Redis", "R2-D2", "caf\u00e9", "CRISP"]}
    changed = dialect.decode_text(json.dumps(message).encode())
    assert isinstance(changed, Phrases)
    assert len(changed.phrases) == 4, "the worker knows best"
    (answer,) = _replies(dialect)
    assert (answer["type"], answer["keyterms"]) == ("ConfigureSuccess", ["Redis", "CRISP"])


def test_keyterms_are_replaced_while_the_stream_goes_on() -> None:
    dialect = _dialect()
    message = b'{"type":"Configure","keyterms":["Redis"],"features":{"punctuate":true}}'
    assert dialect.decode_text(message) == Phrases((Phrase("Redis", optional=True),))
    (answer,) = _replies(dialect)
    assert (answer["type"], answer["keyterms"]) == ("ConfigureSuccess", ["Redis"])
    assert dialect.decode_text(b'{"type":"Configure","features":{"numerals":false}}') is None
    (answer,) = _replies(dialect)
    assert answer == {"type": "ConfigureSuccess", "request_id": dialect.headers[0][1]}


@pytest.mark.parametrize(
    ("keyterms", "code"),
    [
        (["a"] * 501, "CONFIGURE_KEYTERM_LIMIT_EXCEEDED"),
        (["a", 1], "CONFIGURE_INTERNAL_ERROR"),
        ("a", "CONFIGURE_INTERNAL_ERROR"),
        (["\0"], "CONFIGURE_INTERNAL_ERROR"),
    ],
)
def test_keyterms_that_cannot_be_had_change_nothing(keyterms: object, code: str) -> None:
    dialect = _dialect()
    assert dialect.decode_text(json.dumps({"type": "Configure", "keyterms": keyterms}).encode()) is None
    (answer,) = _replies(dialect)
    assert (answer["type"], answer["code"]) == ("ConfigureFailure", code)
    assert answer["description"].startswith("'keyterms' ")


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (ClientFault(ErrorCode.WRONG_ENCODING, "It is MP3."), 1008, "DATA-0000 It is MP3."),
        (ClientFault(ErrorCode.IDLE_TIMEOUT, "Nothing came."), 1011, "NET-0001 Nothing came."),
        (ClientFault(ErrorCode.SLOW_READER, "é" * 200), 1008, "SLOW_READER " + "é" * 55),
        (RedisUnavailable(), 1013, "REDIS_UNAVAILABLE Redis is not available."),
        (StreamError(ErrorCode.DRAINING, "It stops."), 1012, "DRAINING It stops."),
    ],
)
def test_how_a_connection_ends_early(error: StreamError, code: int, reason: str) -> None:
    dialect = _dialect()
    assert dialect.farewell(error)[1:] == (code, reason)
    assert len(reason.encode()) <= 123
    (told,) = _said(dialect, ErrorMessage(error.code.value, error.message))
    assert (told["type"], told["description"]) == ("Error", error.message)
    assert reason.startswith(told["code"])


def test_audio_behind_the_end_is_nobodys_business() -> None:
    assert _said(_dialect(), ErrorMessage("audio_after_final", "Too late.")) == []


@pytest.mark.parametrize(
    ("error", "status", "code", "retries"),
    [
        (NoFreeStream(), 503, "SERVICE_UNAVAILABLE", True),
        (RedisUnavailable(), 503, "SERVICE_UNAVAILABLE", True),
        (StreamError(ErrorCode.OVER_LIMIT, "Too many."), 429, "TOO_MANY_REQUESTS", True),
        (StreamError(ErrorCode.INTERNAL, "A defect."), 500, "INTERNAL_SERVER_ERROR", False),
        (StreamError(ErrorCode.UNAUTHORIZED, "Revoked."), 401, "INVALID_AUTH", False),
    ],
)
def test_how_a_request_is_refused(error: StreamError, status: int, code: str, retries: bool) -> None:
    dialect = _dialect()
    refusal = dialect.refusal(error)
    assert refusal.status == status
    assert json.loads(refusal.content) == {
        "err_code": code,
        "err_msg": error.message,
        "request_id": dialect.headers[0][1],
    }
    assert ("Retry-After" in dict(refusal.headers)) is retries


def test_encodings_reach_the_worker_as_they_are() -> None:
    for name, encoding in (("mulaw", Encoding.MULAW), ("alaw", Encoding.ALAW), ("linear32", Encoding.F32)):
        dialect = _dialect(raw=f"encoding={name}&sample_rate=8000")
        assert dialect.decode_binary(bytes(8)) == Audio(bytes(8), encoding)
        assert dialect.options.sample_rate == 8000
