"""The native protocol of one connection: what its client's bytes mean, and how it is told things."""

from __future__ import annotations

import base64
import json
import struct
from dataclasses import replace
from typing import Any

import pytest

from common.errors import ERROR_SPECS, ClientFault, ErrorCode, StreamError
from common.messages import (
    Ack,
    Audio,
    Close,
    Config,
    Encoding,
    Ping,
    Pong,
    Result,
    ServerMessage,
    Utterance,
    Word,
)
from common.options import StreamOptions
from common.server_codec import decode_server_message
from ingress.dialects.dialect import Frame
from ingress.dialects.native import NativeDialect, encode_server_message, merge_results
from tests.fake_backplane import some_result


def _message(num_samples: int, **more: object) -> bytes:
    data = base64.b64encode(b"\1\0" * num_samples).decode()
    return json.dumps({"type": "audio", "data": data, **more}).encode()


def _said(dialect: NativeDialect, message: ServerMessage) -> dict[str, Any]:
    (frame,) = dialect.encode(message, 0)
    said: dict[str, Any] = json.loads(frame.data)
    return said


def _refused(dialect: NativeDialect, data: bytes, *, binary: bool = False) -> ClientFault:
    with pytest.raises(ClientFault) as caught:
        (dialect.decode_binary if binary else dialect.decode_text)(data)
    return caught.value


def test_messages_alike_are_read_like_any_other() -> None:
    dialect = NativeDialect(16000)
    for num_samples in (100, 200, 1, 0, 3000):
        assert dialect.decode_text(_message(num_samples)) == Audio(b"\1\0" * num_samples)
    assert dialect.decode_text(_message(200, final=True)) == Audio(b"\1\0" * 200, final=True)
    assert dialect.decode_text(b'{"type":"ping"}') == Ping()
    assert _refused(dialect, _message(100)[:-1]).code is ErrorCode.BAD_JSON


def test_no_more_shapes_are_learned_of_a_client_whose_messages_all_differ() -> None:
    dialect = NativeDialect(16000)
    for number in range(30):
        assert dialect.decode_text(_message(100, at=number)) == Audio(b"\1\0" * 100)
    learned = dialect._shape
    assert dialect.decode_text(_message(100, at=30)) is not None
    assert dialect._shape is learned
    dialect = NativeDialect(16000)
    for number in range(30):
        dialect.decode_text(_message(100, at=number))
        dialect.decode_text(_message(100, at=number))
        assert dialect._shape is not None
        assert dialect._shape.read(_message(100, at=number)) is not None


@pytest.mark.parametrize("data", [b"", b" ", b"\r", b" \t \r"])
def test_blank_lines_and_text_frames_say_nothing(data: bytes) -> None:
    assert NativeDialect(16000).decode_text(data) is None


def test_a_sample_may_be_cut_between_binary_frames() -> None:
    dialect = NativeDialect(16000)
    frames = (b"\1\2\3", b"\4", b"", b"\5", b"\6\7\x08")
    payloads = [dialect.decode_binary(frame).payload for frame in frames]
    assert payloads == [b"\1\2", b"\3\4", b"", b"", b"\5\6\7\x08"]


@pytest.mark.parametrize("after", [b'{"type":"close"}', b'{"type":"audio","data":"AAA="}', _message(100)])
def test_half_a_sample_at_the_end_of_binary_frames_is_an_odd_byte_count(after: bytes) -> None:
    dialect = NativeDialect(16000)
    dialect.decode_text(_message(100))
    dialect.decode_binary(b"\1\2\3")
    assert dialect.decode_text(b'{"type":"ping"}') == Ping()
    assert _refused(dialect, after).code is ErrorCode.ODD_BYTE_COUNT


def test_half_a_sample_behind_the_end_is_nobodys_fault() -> None:
    dialect = NativeDialect(16000)
    dialect.decode_text(b'{"type":"close"}')
    dialect.decode_binary(b"\1\2\3")
    assert dialect.decode_text(b'{"type":"close"}') == Close()


def test_a_message_in_a_binary_frame_is_told_apart_from_audio() -> None:
    for data in (b'{"type":"close"}', b' {\r\n "type": "audio", "data": "AAA="}\n'):
        fault = _refused(NativeDialect(16000), data, binary=True)
        assert fault.code is ErrorCode.BAD_MESSAGE
        assert "text frames" in fault.message
    for data in (b"{}", b'{"', b'{"type', b"  ", b"\n\n{ "):
        assert isinstance(NativeDialect(16000).decode_binary(data), Audio)


def test_a_container_is_refused_on_every_way_and_only_at_the_start_of_a_stream() -> None:
    flac = b"fLaC\0\0\0\x22" + bytes(1000)
    text = json.dumps({"type": "audio", "data": base64.b64encode(flac).decode()}).encode()
    assert _refused(NativeDialect(16000), flac, binary=True).code is ErrorCode.WRONG_ENCODING
    assert _refused(NativeDialect(16000), text).code is ErrorCode.WRONG_ENCODING
    dialect = NativeDialect(16000)
    dialect.decode_binary(bytes(100))
    assert isinstance(dialect.decode_binary(flac), Audio)
    dialect = NativeDialect(16000)
    dialect.decode_text(
        b'{"type":"resume","stream_id":1,"resume_token":"t","last_seq":0,"audio_ack_samples":0}'
    )
    assert isinstance(dialect.decode_binary(flac), Audio)


@pytest.mark.parametrize("encoding", list(Encoding))
def test_config_says_how_binary_frames_and_data_are_written(encoding: Encoding) -> None:
    dialect = NativeDialect(16000)
    config = dialect.decode_text(b'{"type":"config","encoding":"%b","sample_rate":8000}' % encoding.encode())
    assert isinstance(config, Config)
    assert (config.options.encoding, config.options.sample_rate) == (encoding, 8000)
    payload = struct.pack("<40f", *[0.25] * 40)
    assert dialect.decode_binary(payload) == Audio(payload, encoding)
    data = base64.b64encode(payload).decode()
    for _ in range(3):  # also when the shape is known
        text = json.dumps({"type": "audio", "data": data}).encode()
        assert dialect.decode_text(text) == Audio(payload, encoding)
    other = json.dumps({"type": "audio", "data": data, "encoding": "pcm16"}).encode()
    assert dialect.decode_text(other) == Audio(payload, Encoding.PCM16)


def test_binary_floats_are_cut_anywhere_and_each_is_looked_at() -> None:
    dialect = NativeDialect(16000)
    dialect.decode_text(b'{"type":"config","encoding":"f32"}')
    payload = struct.pack("<3f", 0.5, -0.5, 0.25)
    parts = [dialect.decode_binary(payload[at : at + 1]).payload for at in range(len(payload))]
    assert b"".join(parts) == payload
    assert all(len(part) in (0, 4) for part in parts)
    assert _refused(dialect, struct.pack("<f", float("nan")), binary=True).code is ErrorCode.BAD_SAMPLES
    assert dialect.replies == []
    dialect.decode_binary(struct.pack("<f", 20000.0) * 2000)
    (warning,) = dialect.replies
    assert json.loads(warning.data)["code"] == "integer_scale"


def test_merging_keeps_all_that_was_said() -> None:
    first, second, third = (
        some_result(4, "text 4", tokens=(1, 2)),
        some_result(5, "text 5"),
        some_result(6, "text 6", tokens=(3,), acked=600),
    )
    merged = merge_results(merge_results(first, second), third)
    assert merged == some_result(6, "text 6", tokens=(1, 2, 3), acked=600, first=4)


def test_merging_concatenates_words_and_utterances() -> None:
    go, on = Word("go", 0.0, 0.1, 0.5), Word("on", 0.2, 0.3, 0.5)
    utterance = Utterance(1, "go", 0.0, 0.1)
    first = some_result(1, words=(go,), utterances=(utterance,))
    merged = merge_results(first, some_result(2, words=(on,)))
    assert merged.words == (go, on)
    assert merged.utterances == (utterance,)
    assert merge_results(first, some_result(2)).words == (go,)
    assert merge_results(some_result(1), some_result(2)).words is None


def test_a_client_that_asks_for_it_gets_the_new_text_and_where_it_goes() -> None:
    whole, new = NativeDialect(16000), NativeDialect(16000)
    new.decode_text(b'{"type":"config","text":"new"}')
    result = replace(some_result(3, "Größe \U0001f600 drei"), text_from=7)
    assert _said(whole, result) == json.loads(encode_server_message(result))
    said = _said(new, result)
    assert (said["text"], said["text_from"]) == (" drei", 7)
    assert {name: said[name] for name in said if name not in ("text", "text_from")} == {
        name: value for name, value in _said(whole, result).items() if name != "text"
    }
    assert decode_server_message(new.encode(result, 0)[0].data) == replace(result, text=" drei")
    # And so does one that goes on with such a stream.
    resumed = NativeDialect(16000)
    resumed.resumed(StreamOptions(text="new"), 16000)
    assert resumed.encode(result, 0) == new.encode(result, 0)


@pytest.mark.parametrize(
    ("parts", "text_from", "text"),
    [
        ([("one", 0), ("one two", 3)], 0, "one two"),
        ([("a one", 1), ("a one two", 5), ("a one two", 9)], 1, " one two"),
        # The last words were heard otherwise: what is new begins before them.
        ([("a one", 1), ("a won", 2), ("a won two", 5)], 1, " won two"),
    ],
)
def test_merged_results_say_all_that_is_new(parts: list[tuple[str, int]], text_from: int, text: str) -> None:
    dialect = NativeDialect(16000)
    dialect.decode_text(b'{"type":"config","text":"new"}')
    merged: Frame | None = None
    for seq, (whole, at) in enumerate(parts, 1):
        result = replace(some_result(seq, whole), text_from=at)
        (frame,) = dialect.encode(result, 0)
        merged = frame if merged is None else dialect.merge(merged.says, frame.says)
        assert merged is not None
    assert merged is not None
    said = json.loads(merged.data)
    assert (said["text"], said["text_from"], said["seq_first"]) == (text, text_from, 1)


@pytest.mark.parametrize(
    ("earlier", "later", "merged"),
    [
        (Ack(1), Ack(2), Ack(2)),
        (Ack(1), some_result(1), some_result(1)),
        (some_result(1), Ack(2), None),
        (Pong(), Pong(), None),
        (some_result(1), Pong(), None),
    ],
)
def test_what_is_merged(earlier: ServerMessage, later: ServerMessage, merged: Result | None) -> None:
    frame = NativeDialect(16000).merge(earlier, later)
    assert frame == (None if merged is None else Frame(encode_server_message(merged), merged))


def test_every_error_has_a_close_code() -> None:
    dialect = NativeDialect(16000)
    assert dialect.farewell(None)[1:] == (1000, "")
    for code in ErrorCode:
        error = StreamError(code, "Why.")
        farewell = dialect.farewell(error)
        assert farewell.error is error
        assert farewell.code in (1008, 1009, 1011, 1012, 1013)
        assert ERROR_SPECS[code].closes or farewell.code == 1008
        assert farewell.reason == code.value
