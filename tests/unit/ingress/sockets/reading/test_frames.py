"""The fast path for frames: same messages as websockets' own parser, for any cut of the bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri
from websockets.utils import apply_mask

from ingress.sockets.websocket import FrameReader, Message, Other, text_frame

LIMIT = 70_000


def frame(payload: bytes, opcode: int = 1, *, fin: bool = True, mask: bytes = b"\x11\x22\x33\x44") -> bytes:
    first = (0x80 if fin else 0) | opcode
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, size)
    return head + mask + apply_mask(payload, mask)


def taken(reader: FrameReader, data: bytes) -> list[Message | Other]:
    """What is whole once `data` has come."""
    reader.feed(data)
    found = []
    while (item := reader.next()) is not None:
        found.append(item)
    return found


def by_websockets(data: bytes) -> list[tuple[int, bool, bytes]]:
    protocol = ServerProtocol(max_size=LIMIT, state=State.OPEN)
    protocol.receive_data(data)
    return [
        (int(event.opcode), event.fin, bytes(event.data))
        for event in protocol.events_received()
        if isinstance(event, Frame)
    ]


def by_reader(pieces: list[bytes]) -> list[tuple[int, bool, bytes]]:
    reader = FrameReader(LIMIT)
    found: list[tuple[int, bool, bytes]] = []
    protocol = ServerProtocol(max_size=LIMIT, state=State.OPEN)
    for piece in pieces:
        payload = reader.whole(piece)  # as the shell asks first
        if payload is not None:
            found.append((piece[0] & 0x0F, True, payload))
            continue
        for item in taken(reader, piece):
            if isinstance(item, Message):
                found.append((int(Opcode.BINARY if item.binary else Opcode.TEXT), True, item.payload))
            else:
                protocol.receive_data(item.data)
                found += [
                    (int(event.opcode), event.fin, bytes(event.data))
                    for event in protocol.events_received()
                    if isinstance(event, Frame)
                ]
    return found


WHOLE = st.builds(frame, st.binary(max_size=400), st.sampled_from([1, 2]))
CONTROL = st.builds(frame, st.binary(max_size=125), st.sampled_from([9, 10]))
FRAGMENTED = st.builds(
    lambda first, between, last: frame(first, 1, fin=False) + between + frame(last, 0),
    st.binary(max_size=50),
    st.one_of(st.just(b""), CONTROL),
    st.binary(max_size=50),
)


@given(
    frames=st.lists(st.one_of(WHOLE, CONTROL, FRAGMENTED), max_size=6),
    cuts=st.lists(st.integers(1, 60), min_size=1, max_size=40),
)
def test_the_same_frames_as_websockets_for_any_cut(frames: list[bytes], cuts: list[int]) -> None:
    data = b"".join(frames)
    pieces = []
    at = turn = 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        pieces.append(data[at : at + size])
        at += size
        turn += 1
    assert by_reader(pieces) == by_websockets(data)


@given(frames=st.lists(st.one_of(WHOLE, CONTROL, FRAGMENTED), max_size=6))
def test_the_same_frames_where_each_comes_by_itself(frames: list[bytes]) -> None:
    assert by_reader(frames) == by_websockets(b"".join(frames))


def test_the_short_cut_leaves_everything_else_to_the_reader() -> None:
    reader = FrameReader(1000)
    whole = frame(b"a" * 500)
    assert reader.whole(whole) == b"a" * 500
    assert reader.whole(frame(b"a" * 500, 2)) == b"a" * 500
    for data in (
        whole + b"\x81",
        whole[:-1],
        frame(b"a" * 100),
        frame(b"a" * 1001),
        frame(b"a" * 500, 9),
        b"",
    ):
        assert reader.whole(data) is None
    reader.feed(whole[:10])
    assert reader.whole(whole) is None  # it would be in the middle of a frame
    reader = FrameReader(1000)
    taken(reader, frame(b"a", fin=False))
    assert reader.whole(whole) is None  # a fault, in the middle of a message


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, LIMIT])
def test_a_text_frame_is_what_websockets_reads(size: int) -> None:
    payload = b"x" * size
    client = ClientProtocol(parse_uri("ws://h/"), state=State.OPEN, max_size=LIMIT)
    client.receive_data(text_frame(payload))
    (event,) = client.events_received()
    assert isinstance(event, Frame)
    assert (event.opcode, event.fin, bytes(event.data)) == (Opcode.TEXT, True, payload)


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536, LIMIT])
def test_every_width_of_the_length(size: int) -> None:
    payload = bytes(i % 256 for i in range(size))
    assert taken(FrameReader(LIMIT), frame(payload)) == [Message(payload, False)]


@pytest.mark.parametrize(
    "data",
    [
        frame(b"x" * (LIMIT + 1))[:20],
        struct.pack("!BB", 0x81, 3) + b"abc",
        struct.pack("!BB", 0xC1, 0x83) + b"mask" + b"abc",
    ],
    ids=["too long", "not masked", "reserved bit"],
)
def test_what_must_be_refused_is_handed_on_at_once_with_all_that_follows(data: bytes) -> None:
    reader = FrameReader(LIMIT)
    assert taken(reader, data) == [Other(data)]
    assert taken(reader, frame(b"later")) == [Other(frame(b"later"))]
    protocol = ServerProtocol(max_size=LIMIT, state=State.OPEN)
    protocol.receive_data(data)
    assert protocol.parser_exc is not None


def test_an_incomplete_frame_is_held_once() -> None:
    reader = FrameReader(LIMIT)
    whole = frame(b"a" * 5000)
    assert taken(reader, whole[:1]) == []
    for at in range(1, len(whole) - 1, 700):
        assert taken(reader, whole[at : min(at + 700, len(whole) - 1)]) == []
    assert taken(reader, whole[-1:]) == [Message(b"a" * 5000, False)]


def test_who_takes_frames_may_stop_in_the_middle_of_a_read() -> None:
    reader = FrameReader(LIMIT)
    ping = frame(b"p", 9)
    reader.feed(frame(b"one") + ping + frame(b"two")[:-1])
    assert reader.next() == Message(b"one", False)
    assert taken(reader, frame(b"two")[-1:]) == [Other(ping), Message(b"two", False)]
    assert not reader._held
