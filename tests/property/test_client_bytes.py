"""How a client's bytes are cut on their way changes nothing: whole, byte by byte, or anywhere.

The form follows h11's fuzz/afl-server.py: the same input, fed whole and byte by byte, must have the
same outcome.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Response

from common.client_codec import decode_client_message
from common.errors import ClientFault, ErrorCode, StreamError
from common.messages import Audio
from common.monitoring.metrics import IngressMetrics
from ingress.clients.connection import Connection
from ingress.clients.limits import ConnectionLimits
from ingress.dialects.native import NativeDialect
from ingress.meter import Meter
from ingress.protocol import TABLE, ConnectionProtocol, Event, State
from ingress.sockets.framing import LineReader
from ingress.sockets.gate import Gate, Place, max_files
from ingress.sockets.peer import Peer
from ingress.sockets.pinger import Pinger
from ingress.sockets.tcp import TcpShell
from ingress.sockets.websocket import WebSocketShell
from tests.fake_backplane import ScriptedBackplane
from tests.property.shell_input import RecordingTransport, cut

_PCM = st.integers(0, 40).map(lambda count: bytes(range(256))[: 2 * count])


def _json(fields: dict[str, object]) -> bytes:
    return json.dumps(fields).encode()


_MESSAGE = st.one_of(
    _PCM.map(lambda pcm: _json({"type": "audio", "data": base64.b64encode(pcm).decode()})),
    st.lists(st.floats(-1, 1, width=32), max_size=20).map(
        lambda samples: _json({"type": "audio", "samples": samples})
    ),
    st.just(_json({"type": "ping"})),
    st.just(_json({"type": "close"})),
    st.just(_json({"type": "audio", "data": "", "final": True})),
    st.just(_json({"type": "config", "words": True})),
    st.just(_json({"type": "weather"})),
)
_GARBAGE = st.one_of(st.binary(max_size=60), st.just(b"{"), st.just(b"x" * 3000), st.just(b"[]"))
_LINES = st.lists(st.one_of(_MESSAGE, _MESSAGE, _MESSAGE, _GARBAGE), max_size=12)
_CUTS = st.lists(st.integers(1, 400), max_size=60)


_LIMITS = ConnectionLimits(sample_rate=16000, max_undecoded_s=0.025, send_buffer_bytes=100_000)


async def _outcome(parts: Sequence[bytes], *, websocket: bool) -> tuple[list[str], bytes, bytes, bool]:
    """Feed the parts; return what was done to the stream, its audio, what was sent, whether it ended."""
    backplane = ScriptedBackplane()
    connections: list[Connection] = []
    loop = asyncio.get_running_loop()

    def open_connection(peer: Peer) -> Connection:
        connections.append(
            Connection(
                peer,
                NativeDialect(16000),
                backplane,
                _LIMITS,
                lambda coroutine, name: loop.create_task(coroutine, name=name),
                lambda connection: None,
                Meter(IngressMetrics(), "tcp"),
            )
        )
        return connections[-1]

    gate = Gate(max_files)
    transport = RecordingTransport()
    shell: TcpShell | WebSocketShell
    if websocket:
        place = gate.enter(transport)
        assert isinstance(place, Place)
        shell = WebSocketShell(2000, Pinger(0))
        opening = Response(101, "Switching Protocols", Headers())
        shell.take_over(transport, place, open_connection, opening, b"")
    else:
        shell = TcpShell(gate, lambda request: open_connection, 2000)
        shell.connection_made(transport)
    await _settled(backplane)
    start = len(transport.written)
    for part in parts:
        shell.data_received(part)
    await asyncio.sleep(0)
    ended = transport.ended
    shell.connection_lost(None)
    await asyncio.sleep(0)
    link = backplane.link
    return link.log, bytes(link.payload), transport.written[start:], ended


async def _settled(backplane: ScriptedBackplane) -> None:
    while not backplane.links:  # noqa: ASYNC110 - what is waited for sets no event
        await asyncio.sleep(0)
    await asyncio.sleep(0)


@given(lines=_LINES, sizes=_CUTS, end=st.booleans())
@settings(max_examples=150)
def test_tcp_whole_cut_and_byte_by_byte(lines: list[bytes], sizes: list[int], end: bool) -> None:
    data = b"\n".join(lines) + (b"\n" if end else b"")
    ways = ([data], cut(data, sizes), [bytes([byte]) for byte in data])
    outcomes = [asyncio.run(_outcome([part for part in way if part], websocket=False)) for way in ways]
    assert outcomes[0] == outcomes[1] == outcomes[2]


@st.composite
def _frames(draw: st.DrawFn) -> bytes:
    """WebSocket frames: whole and fragmented messages, pings between, now and then a breach."""
    data = b""
    for _ in range(draw(st.integers(0, 8))):
        text = draw(st.booleans())
        payload = draw(_MESSAGE if text else _PCM)
        opcode = Opcode.TEXT if text else Opcode.BINARY
        if draw(st.integers(0, 3)) == 0:
            middle = draw(st.integers(0, len(payload)))
            data += Frame(opcode, payload[:middle], fin=False).serialize(mask=True)
            if draw(st.booleans()):
                data += Frame(draw(st.sampled_from((Opcode.PING, Opcode.PONG))), b"p").serialize(mask=True)
            data += Frame(Opcode.CONT, payload[middle:]).serialize(mask=True)
        else:
            data += Frame(opcode, payload).serialize(mask=True)
        if draw(st.integers(0, 12)) == 0:
            data += draw(
                st.sampled_from(
                    (
                        Frame(Opcode.TEXT, b"{}").serialize(mask=False),
                        Frame(Opcode.BINARY, b"\0" * 3000).serialize(mask=True),
                        Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True),
                        b"\xff\xff\xff",
                        b"\x8a\xfe\x00\x7e" + bytes(130),  # a pong that is too long
                    )
                )
            )
    return data


@given(data=_frames(), sizes=_CUTS)
@settings(max_examples=150)
def test_websocket_whole_cut_and_byte_by_byte(data: bytes, sizes: list[int]) -> None:
    ways = ([data], cut(data, sizes), [bytes([byte]) for byte in data])
    outcomes = [asyncio.run(_outcome([part for part in way if part], websocket=True)) for way in ways]
    assert outcomes[0] == outcomes[1] == outcomes[2]


@given(data=st.binary(max_size=400), sizes=_CUTS, max_line=st.integers(1, 50))
def test_lines_do_not_depend_on_the_cuts(data: bytes, sizes: list[int], max_line: int) -> None:
    def lines(parts: Sequence[bytes]) -> tuple[list[bytes], bool, bytes | None]:
        reader = LineReader(max_line)
        found = []
        for part in parts:
            reader.feed(part)
            while (line := reader.next()) is not None:
                found.append(line)
            assert len(reader._held) <= max_line
        return found, reader.too_long, reader.rest()

    assert lines([data]) == lines(cut(data, sizes)) == lines([bytes([byte]) for byte in data])


@given(samples=st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_samples_are_taken_exactly_when_all_are_finite(samples: list[float]) -> None:
    payload = struct.pack(f"<{len(samples)}f", *samples)
    message = _json({"type": "audio", "encoding": "f32", "data": base64.b64encode(payload).decode()})
    finite = all(sample == sample and abs(sample) != float("inf") for sample in samples)
    for text in (message, json.dumps({"type": "audio", "samples": samples})):
        if finite:
            audio = decode_client_message(text)
            assert isinstance(audio, Audio)
            assert audio.payload == payload
        else:
            with pytest.raises(ClientFault) as caught:
                decode_client_message(text)
            assert caught.value.code is ErrorCode.BAD_SAMPLES


@given(
    events=st.lists(
        st.one_of(
            st.sampled_from([event for event in Event if event.name not in ("AUDIO", "FINAL_AUDIO")]),
            st.tuples(st.integers(0, 50), st.booleans()),
        ),
        max_size=40,
    )
)
def test_a_connection_ends_once_and_its_stream_exactly_as_often(
    events: list[Event | tuple[int, bool]],
) -> None:
    """Whatever happens in whatever order: one end, nothing after it, no stream left behind."""
    protocol = ConnectionProtocol()
    begun = ended = hung_up = 0
    for event in events:
        before = protocol.state
        if isinstance(event, tuple):
            outcome = protocol.receive(Audio(b"\0\0" * event[0], final=event[1]))
        else:
            outcome = protocol.notify(event, StreamError(ErrorCode.INTERNAL, "It happened."))
        names = [action.name for action in outcome.actions]
        if before is State.CLOSED:
            assert names == []
        begun += names.count("BEGIN") + names.count("WELCOME_BACK")
        ended += names.count("ABANDON") + names.count("RELEASE")
        ended += event is Event.TAKEN and Event.TAKEN in TABLE[before]
        hung_up += names.count("HANG_UP")
        assert protocol.state in TABLE
    assert hung_up <= 1
    if protocol.state is State.CLOSED and begun:
        assert ended == 1
    assert begun <= 1
