"""The short cut for audio messages: the same answers as the JSON parser, or none."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.client_codec import decode_client_message
from common.errors import ClientFault
from common.messages import Audio
from ingress.dialects.audio_shape import AudioShape

PAYLOAD = bytes(range(200))


def message(payload: bytes, **fields: object) -> bytes:
    return json.dumps({"type": "audio", "data": base64.b64encode(payload).decode(), **fields}).encode()


def shape_of(data: bytes) -> AudioShape | None:
    decoded = decode_client_message(data)
    assert isinstance(decoded, Audio)
    return AudioShape.of(data, decoded)


@given(payload=st.binary(max_size=300).map(lambda b: b[: len(b) & ~1]), indent=st.sampled_from([None, 1]))
def test_a_message_of_the_same_shape_is_read_like_the_parser_reads_it(
    payload: bytes, indent: int | None
) -> None:
    def write(samples: bytes) -> bytes:
        data = base64.b64encode(samples).decode()
        return json.dumps(
            {"n": "x", "data": data, "encoding": "pcm16", "type": "audio"}, indent=indent
        ).encode()

    shape = shape_of(write(PAYLOAD))
    assert shape is not None
    expected = decode_client_message(write(payload)) if payload else None
    assert shape.read(write(payload)) == expected


@pytest.mark.parametrize(
    "data",
    [
        message(PAYLOAD, final=True),
        message(PAYLOAD, encoding="f32"),
        message(PAYLOAD)[:-1] + b' , "x": 1}',
        b'{"type": "ping"}',
        message(PAYLOAD).replace(b"AAEC", b"AA\\u0041"),
        message(PAYLOAD).replace(b"AAEC", b'AA","final":true,"x":"'),
        message(PAYLOAD).replace(b"AAEC", b"AA*C"),
        message(PAYLOAD[:199]),
    ],
)
def test_a_message_of_another_shape_is_left_to_the_parser(data: bytes) -> None:
    shape = shape_of(message(PAYLOAD))
    assert shape is not None
    assert shape.read(data) is None


@pytest.mark.parametrize(
    "data",
    [
        message(PAYLOAD, final=True),
        message(PAYLOAD[:20]),
        message(bytes(256), encoding="f32"),
        json.dumps({"x": base64.b64encode(PAYLOAD).decode(), **json.loads(message(PAYLOAD))}).encode(),
        message(PAYLOAD).replace(b"AAEC", b"\\u0041AEC"),
    ],
)
def test_no_shape_is_taken_from_a_message_that_might_mislead(data: bytes) -> None:
    assert shape_of(data) is None


@given(st.binary(max_size=80))
def test_whatever_is_read_the_parser_would_have_read_too(noise: bytes) -> None:
    data = message(PAYLOAD)
    shape = shape_of(data)
    assert shape is not None
    at = data.index(b"AAEC")
    forged = data[:at] + noise + data[-2:]
    audio = shape.read(forged)
    if audio is not None:
        try:
            assert decode_client_message(forged) == audio
        except ClientFault:
            pytest.fail("the parser refuses what the short cut took")
