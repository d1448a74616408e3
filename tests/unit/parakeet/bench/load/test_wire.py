"""The load generator's side of the two transports."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parakeet.bench.load.wire import (
    OP_PONG,
    OP_TEXT,
    LineDecoder,
    WebSocketDecoder,
    WireError,
    accept_value,
    client_frame,
)


def server_frame(payload: bytes, first: int = 0x81) -> bytes:
    if len(payload) < 126:
        return struct.pack("!BB", first, len(payload)) + payload
    if len(payload) < 65536:
        return struct.pack("!BBH", first, 126, len(payload)) + payload
    return struct.pack("!BBQ", first, 127, len(payload)) + payload


def opened() -> WebSocketDecoder:
    decoder = WebSocketDecoder("localhost", 1, "/")
    key = decoder.opening().split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
    answer = b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: " + accept_value(key) + b"\r\n\r\n"
    assert decoder.feed(answer) == ([], b"")
    return decoder


def test_accept_value_of_the_rfc() -> None:
    assert accept_value(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65535, 65536])
def test_a_client_frame_unmasks_to_its_payload(length: int) -> None:
    payload = bytes(i % 251 for i in range(length))
    frame = client_frame(OP_TEXT, payload, b"\x01\x02\x03\x04")
    head = 6 if length < 126 else 8 if length < 65536 else 14
    assert frame[0] == 0x81
    assert frame[1] & 0x80
    masked = frame[head:]
    assert bytes(byte ^ (1, 2, 3, 4)[at % 4] for at, byte in enumerate(masked)) == payload


@given(
    payloads=st.lists(st.binary(max_size=300), max_size=6),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=50),
)
def test_messages_do_not_depend_on_how_the_bytes_are_cut(payloads: list[bytes], cuts: list[int]) -> None:
    data = b"".join(server_frame(p) for p in payloads)
    decoder = opened()
    found: list[bytes] = []
    position = 0
    turn = 0
    while position < len(data):
        size = cuts[turn % len(cuts)]
        turn += 1
        messages, reply = decoder.feed(data[position : position + size])
        found += messages
        assert reply == b""
        position += size
    assert found == payloads


def test_a_ping_is_answered_and_fragments_are_joined() -> None:
    decoder = opened()
    messages, reply = decoder.feed(
        server_frame(b"he", 0x01) + server_frame(b"are you there", 0x89) + server_frame(b"llo", 0x80)
    )
    assert messages == [b"hello"]
    assert reply[0] == 0x80 | OP_PONG


def test_a_refused_or_forged_handshake_is_an_error() -> None:
    with pytest.raises(WireError, match="503"):
        WebSocketDecoder("h", 1, "/").feed(b"HTTP/1.1 503 Full\r\n\r\n")
    with pytest.raises(WireError, match="Accept"):
        WebSocketDecoder("h", 1, "/").feed(b"HTTP/1.1 101 Ok\r\nSec-WebSocket-Accept: x\r\n\r\n")


def test_lines_are_cut_at_newlines() -> None:
    decoder = LineDecoder()
    assert decoder.feed(b'{"a":1}\n{"b"') == ([b'{"a":1}'], b"")
    assert decoder.feed(b":2}\n") == ([b'{"b":2}'], b"")
