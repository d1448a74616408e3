"""The codec of the client protocol."""

from __future__ import annotations

import base64
import json
import re
import struct
from dataclasses import fields
from pathlib import Path

import pytest

from common.client_codec import decode_client_message, encode_client_message
from common.errors import ClientFault, ErrorCode
from common.messages import (
    Ack,
    Audio,
    ClientMessage,
    Close,
    Config,
    Encoding,
    ErrorMessage,
    Hello,
    Phrases,
    Ping,
    Pong,
    Result,
    Resume,
    Resumed,
    ServerMessage,
    Utterance,
    WarningMessage,
    Word,
)
from common.options import StreamOptions
from common.phrases import Phrase
from common.server_codec import decode_server_message
from ingress.dialects.native import encode_server_message


def _audio(**fields: object) -> str:
    return json.dumps({"type": "audio", **fields})


def _b64(payload: bytes) -> str:
    return base64.b64encode(payload).decode()


def _refused(text: str | bytes) -> ClientFault:
    with pytest.raises(ClientFault) as caught:
        decode_client_message(text)
    assert caught.value.message.endswith(".")
    return caught.value


def test_audio_without_encoding_is_pcm16() -> None:
    message = decode_client_message(_audio(data=_b64(b"\x01\x00\xff\x7f")))
    assert message == Audio(b"\x01\x00\xff\x7f", Encoding.PCM16, False)
    assert isinstance(message, Audio)
    assert message.num_samples == 2


def test_f32_audio_and_its_final_mark() -> None:
    payload = struct.pack("<3f", 0.5, -1.0, 0.0)
    message = decode_client_message(_audio(data=_b64(payload), encoding="f32", final=True))
    assert message == Audio(payload, Encoding.F32, True)


def test_samples_become_float32() -> None:
    message = decode_client_message(_audio(samples=[0.5, -1, 0]))
    assert message == Audio(struct.pack("<3f", 0.5, -1.0, 0.0), Encoding.F32, False)


@pytest.mark.parametrize(
    "text",
    [
        _audio(data="", final=True),
        _audio(final=True),
        _audio(data="", encoding="f32", final=True),
        _audio(samples=[], final=True),
    ],
)
def test_final_may_carry_no_audio(text: str) -> None:
    message = decode_client_message(text)
    assert isinstance(message, Audio)
    assert message.final
    assert message.num_samples == 0


@pytest.mark.parametrize(
    "value", ['"done"', "null", "[{}]", r'"\ud800"', "1e999", "-1e999", "1" * 5000, "1" * 5000 + ".5"]
)
def test_unknown_fields_are_ignored_whatever_they_hold(value: str) -> None:
    for field in (value, f"[{value}]", f'{{"x":{value}}}'):
        text = f'{{"type":"close","reason":{field}}}'
        assert decode_client_message(text) == decode_client_message(text.encode()) == Close()


@pytest.mark.parametrize(
    ("with_nulls", "without"),
    [
        (_audio(data="AAA=", samples=None, final=None, encoding=None), _audio(data="AAA=")),
        (_audio(data=None, samples=[0.5], final=None, encoding=None), _audio(samples=[0.5])),
        (_audio(data=None, samples=None, final=True), _audio(final=True)),
        ('{"type":"config","words":true,"resume":null,"language":null}', '{"type":"config","words":true}'),
        ('{"type":"config","of_a_newer_client":null}', '{"type":"config"}'),
        ('{"type":"close","reason":null}', '{"type":"close"}'),
    ],
)
def test_null_is_a_missing_field(with_nulls: str, without: str) -> None:
    assert decode_client_message(with_nulls) == decode_client_message(without)


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("{", ErrorCode.BAD_JSON, "not JSON"),
        (b"\xff\xfe", ErrorCode.BAD_JSON, "not UTF-8, from byte 0"),
        (b'{"type":"\xff"}', ErrorCode.BAD_JSON, "not UTF-8, from byte 9"),
        ("[" * 500_000, ErrorCode.BAD_JSON, "nested too deep"),
        ("{'type':'close'}", ErrorCode.BAD_JSON, "double quotes"),
        ('{"type":"close",}', ErrorCode.BAD_JSON, "line 1 column 1"),
        ('{"type":"close"', ErrorCode.BAD_JSON, "char 15"),
        ('\ufeff{"type":"close"}', ErrorCode.BAD_JSON, "byte order mark"),
        ("GET /status HTTP/1.1", ErrorCode.BAD_JSON, "HTTP request"),
        ('{"type":"audio","data":"","final":Infinity}', ErrorCode.BAD_JSON, "Infinity"),
        ('{"type":"audio","samples":[0],"gain":NaN}', ErrorCode.BAD_JSON, "NaN"),
        ('{"type":"config","words":NaN}', ErrorCode.BAD_JSON, "NaN"),
        ("3", ErrorCode.BAD_MESSAGE, "object"),
        ("{}", ErrorCode.BAD_MESSAGE, "'type'"),
        ('{"type":7}', ErrorCode.BAD_MESSAGE, "'type'"),
        ('{"type":"speak"}', ErrorCode.UNKNOWN_TYPE, '"speak"'),
        (r'{"type":"x\nforged"}', ErrorCode.UNKNOWN_TYPE, r'"x\nforged"'),
        (_audio(), ErrorCode.BAD_FIELD, "'data' or 'samples'"),
        (_audio(data=3), ErrorCode.BAD_FIELD, "'data'"),
        (_audio(data="", samples=[]), ErrorCode.BAD_FIELD, "not both"),
        (_audio(data=None, samples=None), ErrorCode.BAD_FIELD, "'data' or 'samples'"),
        (_audio(data=True), ErrorCode.BAD_FIELD, "true"),
        (_audio(samples=[0], encoding="opus"), ErrorCode.WRONG_ENCODING, '"opus"'),
        (_audio(data="", encoding=["f32"]), ErrorCode.WRONG_ENCODING, "a list"),
        (_audio(data="", final=0), ErrorCode.BAD_FIELD, "not 0"),
        ('{"type":"audio","data":"\\ud800"}', ErrorCode.BAD_BASE64, "ASCII"),
        ('{"type":"\\ud800"}', ErrorCode.UNKNOWN_TYPE, r'"\ud800"'),
        ('{"type":null}', ErrorCode.BAD_MESSAGE, "'type'"),
        (_audio(samples="0.5"), ErrorCode.BAD_FIELD, "'samples'"),
        (_audio(data="", final="yes"), ErrorCode.BAD_FIELD, '"yes"'),
        (_audio(data="", encoding="opus"), ErrorCode.WRONG_ENCODING, '"opus"'),
        (_audio(data="AAA"), ErrorCode.BAD_BASE64, "base64"),
        (_audio(data="A A="), ErrorCode.BAD_BASE64, "base64"),
        (_audio(data="AAAA=AAA"), ErrorCode.BAD_BASE64, "base64"),
        (_audio(data="\u00e9"), ErrorCode.BAD_BASE64, "ASCII"),
        (_audio(data=_b64(b"abc")), ErrorCode.ODD_BYTE_COUNT, "3 bytes"),
        (_audio(data=_b64(b"abcdef"), encoding="f32"), ErrorCode.ODD_BYTE_COUNT, "f32"),
        (_audio(data=_b64(struct.pack("<f", float("nan"))), encoding="f32"), ErrorCode.BAD_SAMPLES, "finite"),
        (
            _audio(data=_b64(struct.pack("<2f", float("inf"), float("-inf"))), encoding="f32"),
            ErrorCode.BAD_SAMPLES,
            "finite",
        ),
        (_audio(samples=[float("nan")]), ErrorCode.BAD_SAMPLES, "finite"),
        (_audio(samples=[1e39]), ErrorCode.BAD_SAMPLES, "finite"),
        ('{"type":"audio","samples":[1e999]}', ErrorCode.BAD_SAMPLES, "finite"),
        ('{"type":"audio","samples":[%s]}' % ("1" * 5000), ErrorCode.BAD_SAMPLES, "finite"),
        (_audio(samples=[0.5, None]), ErrorCode.BAD_SAMPLES, "not null"),
        (_audio(samples=["1"]), ErrorCode.BAD_SAMPLES, 'not "1"'),
        (_audio(samples=[[1]]), ErrorCode.BAD_SAMPLES, "not a list"),
        (_audio(samples=[True, False]), ErrorCode.BAD_SAMPLES, "true or false"),
        (_audio(samples=[0.5, False]), ErrorCode.BAD_SAMPLES, "true or false"),
        ('{"type":"config","beam":4}', ErrorCode.UNKNOWN_OPTION, '"beam"'),
        ('{"type":"config","words":"yes"}', ErrorCode.BAD_OPTION, "'words'"),
        ('{"type":"config","words":1}', ErrorCode.BAD_OPTION, "not 1"),
        ('{"type":"config","language":"\\ud800"}', ErrorCode.BAD_OPTION, r'"\ud800"'),
        ('{"type":"config","\\ud800":1}', ErrorCode.UNKNOWN_OPTION, r'"\ud800"'),
        ('{"type":"config","vad_threshold":1e999}', ErrorCode.BAD_OPTION, "too large"),
        ('{"type":"resume","stream_id":1}', ErrorCode.BAD_FIELD, "'resume_token'"),
        (
            '{"type":"resume","stream_id":1,"resume_token":"","last_seq":true,"audio_ack_samples":0}',
            ErrorCode.BAD_FIELD,
            "'last_seq'",
        ),
        (
            '{"type":"resume","stream_id":1,"resume_token":"","last_seq":0,"audio_ack_samples":null}',
            ErrorCode.BAD_FIELD,
            "nothing",
        ),
        (
            '{"type":"resume","stream_id":-1,"resume_token":"","last_seq":0,"audio_ack_samples":0}',
            ErrorCode.BAD_FIELD,
            "'stream_id'",
        ),
    ],
)
def test_what_is_wrong_has_its_code_and_sentence(text: str | bytes, code: ErrorCode, says: str) -> None:
    error = _refused(text)
    assert error.code is code
    assert says in error.message


def test_the_largest_float32_values_are_not_taken_for_infinite() -> None:
    payload = struct.pack("<f", 3.4028234663852886e38) * 1000
    message = decode_client_message(_audio(data=_b64(payload), encoding="f32"))
    assert isinstance(message, Audio)
    assert message.num_samples == 1000


def test_a_sentence_does_not_repeat_a_long_fault() -> None:
    error = _refused(json.dumps({"type": "x" * 10_000}))
    assert len(error.message) < 120


@pytest.mark.parametrize(
    "message",
    [
        Audio(b"\x00\x01" * 80, Encoding.PCM16, False),
        Audio(struct.pack("<2f", 0.25, -0.5), Encoding.F32, True),
        Config(StreamOptions(words=True, resume=True)),
        Config(StreamOptions()),
        Config(StreamOptions(phrases=(Phrase("Zyrtec", 2.5), Phrase("Jane Doe")))),
        Phrases((Phrase("Zyrtec", 2.5), Phrase("Jane Doe"))),
        Phrases(()),
        Resume(7, "secret", 3, 16000),
        Close(),
        Ping(),
    ],
)
def test_client_messages_survive_the_codec(message: ClientMessage) -> None:
    assert decode_client_message(encode_client_message(message)) == message


_FULL_RESULT = Result(
    "go",
    (1,),
    (0.5,),
    True,
    "silence",
    "end_of_utterance",
    9,
    5120,
    7,
    (Word("go", 0.08, 0.24, 0.5),),
    (Utterance(1, "go", 0.08, 0.24),),
    from_finalize=True,
)


@pytest.mark.parametrize(
    "message",
    [
        Hello(3, 16000, "secret", ("config", "resume")),
        Result("go forward", (1, 2), (0.5, 0.75), False, None, "running", 4, 2560),
        _FULL_RESULT,
        Ack(800),
        WarningMessage("integer_scale", "Divide."),
        Resumed(3, "next", 800),
        Pong(),
        ErrorMessage("no_free_stream", "No free streaming state available.", None),
        ErrorMessage("bad_json", "This is not JSON.", 3),
    ],
)
def test_server_messages_survive_the_codec(message: ServerMessage) -> None:
    assert decode_server_message(encode_server_message(message)) == message


def test_every_field_of_a_result_is_in_the_one_that_survives_and_in_the_typescript_client() -> None:
    optional = {field.name for field in fields(Result) if getattr(_FULL_RESULT, field.name) == field.default}
    assert optional == {"text_from"}, "give _FULL_RESULT the new field; `text_from` goes with new text alone"
    source = (Path(__file__).parents[3] / "clients" / "typescript" / "src" / "messages.ts").read_text()
    interface = source.split("export interface Result {")[1].split("}")[0]
    assert set(re.findall(r"^  (\w+)\??:", interface, re.MULTILINE)) == {
        "type",
        *(field.name for field in fields(Result)),
    }


def test_server_messages_have_exactly_the_documented_fields() -> None:
    assert json.loads(encode_server_message(Pong())) == {"type": "pong"}
    result = json.loads(encode_server_message(Result("a", (1,), (0.5,), False, "speech", "running", 1, 2560)))
    assert list(result) == [
        "type",
        "text",
        "token_ids",
        "confidence_scores",
        "is_final",
        "last_state",
        "turn_detection",
        "seq",
        "audio_ack_samples",
    ]


def test_a_type_of_a_newer_server_is_no_error() -> None:
    assert decode_server_message('{"type":"weather"}') is None
    with pytest.raises(ValueError, match="lacks a field"):
        decode_server_message('{"type":"hello"}')
