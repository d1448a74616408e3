"""The WebSocket port, with real sockets, a real client and the backplane in memory."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.typing import Subprotocol

from common.entries import LineKind
from common.errors import NoFreeStream
from common.monitoring.metrics import IngressMetrics
from ingress.clients.connection import Connection
from ingress.clients.limits import ConnectionLimits
from ingress.dialects.dialect import Farewell
from ingress.dialects.native import NativeDialect
from ingress.meter import Meter
from ingress.sockets.gate import Gate, Place, max_files
from ingress.sockets.peer import Peer
from ingress.sockets.pinger import Pinger
from ingress.sockets.websocket import WebSocketShell
from tests.fake_backplane import ScriptedBackplane, some_result
from tests.ingress_harness import HANDSHAKE, serving, wait_until


async def _receive(client: ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(60):
        message: dict[str, Any] = json.loads(await client.recv())
    return message


async def _closed(client: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed):
        async with asyncio.timeout(60):
            await client.recv()
    assert client.close_code is not None
    return client.close_code, client.close_reason or ""


async def test_a_stream_in_text_and_binary_frames() -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness, connect(harness.ws_url) as client:
        assert (await _receive(client))["type"] == "hello"
        await client.send('{"type":"ping"}')
        assert await _receive(client) == {"type": "pong"}
        await client.send(b"\0\0" * 30)
        assert (await _receive(client))["text"] == "30 samples"
        await client.send('{"type":"audio","samples":[0.5,0.5]}')
        assert (await _receive(client))["text"] == "32 samples"
        await client.send('{"type":"close"}')
        assert (await _receive(client))["is_final"]
        assert await _closed(client) == (1000, "")
        assert harness.backplane.link.log == ["begin", "append", "append", "final", "release"]


async def test_fragmented_messages_are_put_together() -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness, connect(harness.ws_url) as client:
        await _receive(client)
        await client.send([b"\0", b"\0\0", b"\0" * 17])
        assert (await _receive(client))["text"] == "10 samples"
        await client.send(['{"type":"au', 'dio","samples":[0]', "}"])
        assert (await _receive(client))["text"] == "11 samples"


async def test_control_frames_between_the_parts_of_a_message() -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness, connect(harness.ws_url) as client:
        await _receive(client)
        first = Frame(Opcode.BINARY, b"\0\0", fin=False).serialize(mask=True)
        ping = Frame(Opcode.PING, b"hi").serialize(mask=True)
        last = Frame(Opcode.CONT, b"\0\0").serialize(mask=True)
        client.transport.write(first + ping + last)
        assert (await _receive(client))["text"] == "2 samples"


async def test_pings_of_the_websocket_are_answered() -> None:
    async with serving(ScriptedBackplane()) as harness, connect(harness.ws_url) as client:
        await _receive(client)
        async with asyncio.timeout(60):
            await (await client.ping(b"there?"))


async def test_pings_and_parts_of_a_message_are_no_silence() -> None:
    async with (
        serving(ScriptedBackplane(), idle_timeout_s=2.0) as harness,
        connect(harness.ws_url) as client,
    ):
        await _receive(client)
        for _ in range(10):
            await asyncio.sleep(0.3)
            client.transport.write(Frame(Opcode.PING, b"").serialize(mask=True))
        for byte in Frame(Opcode.TEXT, b'{"type":"ping"}').serialize(mask=True):
            await asyncio.sleep(0.02)
            client.transport.write(bytes([byte]))
        assert await _receive(client) == {"type": "pong"}
        assert (await _receive(client))["code"] == "idle_timeout"


@pytest.mark.parametrize("offered", [["token"], ["token", "abc"], ["parakeet.v1", "base64url.c2VjcmV0"]])
async def test_an_offered_subprotocol_is_answered_with_the_first(offered: list[str]) -> None:
    async with (
        serving(ScriptedBackplane(echo=True)) as harness,
        connect(harness.ws_url, subprotocols=[Subprotocol(name) for name in offered]) as client,
    ):
        assert client.subprotocol == offered[0]
        await _receive(client)
        await client.send(b"\0\0" * 30)
        assert (await _receive(client))["text"] == "30 samples"


async def test_no_subprotocol_is_answered_where_none_is_offered() -> None:
    async with serving(ScriptedBackplane()) as harness:
        client = await harness.raw_ws()
        await client.send(HANDSHAKE)
        async with asyncio.timeout(60):
            head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101")
        assert b"sec-websocket-protocol" not in head.lower()
        await client.close()


async def test_compression_is_declined() -> None:
    async with (
        serving(ScriptedBackplane()) as harness,
        connect(harness.ws_url, compression="deflate") as client,
    ):
        assert client.protocol.extensions == []


@pytest.mark.parametrize("fragmented", [False, True])
async def test_a_message_that_is_too_long_has_its_error_and_close_code(fragmented: bool) -> None:
    async with serving(ScriptedBackplane(echo=True), max_frame_bytes=1000) as harness:
        async with connect(harness.ws_url) as client:
            await _receive(client)
            await client.send(b"\0" * 1000)
            assert (await _receive(client))["text"] == "500 samples"
            await client.send([b"\0" * 600] * 2 if fragmented else b"\0" * 1002)
            assert (await _receive(client))["is_final"] is True
            message = await _receive(client)
            assert message["code"] == "frame_too_long"
            assert (await _closed(client))[0] == 1009
        assert harness.backplane.link.log == ["begin", "append", "final", "release"]


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"RIFF\xff\xff\xff\x7fWAVEfmt ", "wrong_encoding"),
        (b'{"type":"close"}', "bad_message"),
        ('{"type":"audio","data":"AA=="}', "odd_byte_count"),
        ("{", "bad_json"),
        ('{"type":"audio","data":"","encoding":"mp3"}', "wrong_encoding"),
    ],
)
async def test_a_clients_fault_closes_with_policy_violation(frame: str | bytes, code: str) -> None:
    async with serving(ScriptedBackplane()) as harness, connect(harness.ws_url) as client:
        await _receive(client)
        await client.send(frame)
        assert (await _receive(client))["code"] == code
        assert await _closed(client) == (1008, code)


async def test_text_that_is_not_utf8_is_bad_json() -> None:
    async with serving(ScriptedBackplane()) as harness, connect(harness.ws_url) as client:
        await _receive(client)
        await client.send(b'{"type":"\xff"}', text=True)
        assert (await _receive(client))["code"] == "bad_json"


async def test_a_full_cluster_says_try_again_later() -> None:
    backplane = ScriptedBackplane()
    backplane.refusal = NoFreeStream()
    async with serving(backplane) as harness, connect(harness.ws_url) as client:
        assert (await _receive(client))["code"] == "no_free_stream"
        assert (await _closed(client))[0] == 1013


async def test_a_closing_client_has_its_stream_abandoned() -> None:
    async with serving(ScriptedBackplane()) as harness:
        async with connect(harness.ws_url) as client:
            await _receive(client)
            await client.send(b"\0\0")
            await wait_until(lambda: "append" in harness.backplane.link.log)
        assert client.close_code == 1000
        await wait_until(lambda: harness.backplane.link.log[-1] == "abandon")


async def test_a_client_that_disappears_has_its_stream_abandoned() -> None:
    async with serving(ScriptedBackplane()) as harness, connect(harness.ws_url) as client:
        await _receive(client)
        await client.send(b"\0\0")
        await wait_until(lambda: "append" in harness.backplane.link.log)
        client.transport.abort()
        await wait_until(lambda: harness.backplane.link.log[-1] == "abandon")


async def test_a_breach_of_rfc_6455_closes_that_connection() -> None:
    async with serving(ScriptedBackplane()) as harness, connect(harness.ws_url) as client:
        await _receive(client)
        await client.send(b"\0\0")
        await wait_until(lambda: "append" in harness.backplane.link.log)
        client.transport.write(Frame(Opcode.TEXT, b"{}").serialize(mask=False))
        assert (await _closed(client))[0] == 1002
        await wait_until(lambda: harness.backplane.link.log[-1] == "abandon")


async def test_results_longer_than_64_kib() -> None:
    async with serving(ScriptedBackplane()) as harness, connect(harness.ws_url) as client:
        await _receive(client)
        await client.send(b"\0\0")
        await wait_until(lambda: "append" in harness.backplane.link.log)
        for size in (100, 1000, 100_000):
            text = "x" * size
            harness.backplane.link.listener.on_result(LineKind.PARTIAL, some_result(1, text))
            assert (await _receive(client))["text"] == text


async def test_frames_that_come_along_with_the_handshake() -> None:
    async with serving(ScriptedBackplane(echo=True)) as harness:
        client = await harness.raw_ws()
        audio = Frame(Opcode.BINARY, b"\0\0" * 5).serialize(mask=True)
        final = Frame(Opcode.TEXT, b'{"type":"close"}').serialize(mask=True)
        await client.send(HANDSHAKE + audio + final)
        async with asyncio.timeout(60):
            answer = await client.reader.readuntil(b'"is_final":true')
        assert answer.startswith(b"HTTP/1.1 101")
        assert b"5 samples" in answer
        await client.close()
        assert harness.backplane.link.log[:3] == ["begin", "append", "final"]


class _StuckTransport(asyncio.Transport):
    """The socket of a client that does not read: all that is written stays, until `drain`."""

    def __init__(self) -> None:
        super().__init__()
        self.shell: asyncio.Protocol | None = None
        self.written: list[bytes] = []
        self.unread = 0
        self._high = 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high or 0

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        was, self.unread = self.unread, self.unread + len(data)
        self.written.append(bytes(data))
        if was <= self._high < self.unread and self.shell is not None:
            self.shell.pause_writing()

    def drain(self) -> None:
        """The client has read everything."""
        self.unread = 0
        if self.shell is not None:
            self.shell.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.unread

    def write_eof(self) -> None:
        """Nothing follows."""

    def can_write_eof(self) -> bool:
        return True

    def abort(self) -> None:
        """The test loses the connection itself."""

    def pause_reading(self) -> None:
        """What the test has is fed anyway."""

    def resume_reading(self) -> None:
        """What the test has is fed anyway."""


@asynccontextmanager
async def _stuck() -> AsyncIterator[tuple[WebSocketShell, _StuckTransport]]:
    """A WebSocket connection after its handshake, whose client reads only by `drain`."""
    limits = ConnectionLimits(sample_rate=16000, max_undecoded_s=1.0, send_buffer_bytes=10_000)
    loop = asyncio.get_running_loop()
    backplane = ScriptedBackplane(echo=True)

    def open_connection(peer: Peer) -> Connection:
        return Connection(
            peer,
            NativeDialect(16000),
            backplane,
            limits,
            lambda task, name: loop.create_task(task),
            lambda _: None,
            Meter(IngressMetrics(), "websocket"),
        )

    transport = _StuckTransport()
    place = Gate(max_files).enter(transport)
    assert isinstance(place, Place)
    shell = WebSocketShell(1000, Pinger(0))
    transport.shell = shell
    opening = Response(101, "Switching Protocols", Headers())
    shell.take_over(transport, place, open_connection, opening, b"")
    await wait_until(lambda: bool(transport.written) and b"hello" in transport.written[-1])
    try:
        yield shell, transport
    finally:
        shell.connection_lost(None)


async def test_pings_of_a_client_that_does_not_read_cost_bounded_memory() -> None:
    async with _stuck() as (shell, transport):
        for number in range(20_000):
            shell.data_received(Frame(Opcode.PING, b"%099d" % number).serialize(mask=True))
        assert 32_000 < transport.unread < 33_000
        transport.drain()
        # The latest ping stands for those before it (RFC 6455, section 5.5.3).
        assert transport.written[-1] == Frame(Opcode.PONG, b"%099d" % 19_999).serialize(mask=False)
        answered = len(transport.written)
        transport.drain()
        assert len(transport.written) == answered


async def test_a_pong_that_waits_does_not_come_after_the_close_frame() -> None:
    async with _stuck() as (shell, transport):
        for _ in range(1000):
            shell.data_received(Frame(Opcode.PING, b"p" * 99).serialize(mask=True))
        shell.close(Farewell(None, 1000, ""))
        transport.drain()
        assert transport.written[-1] == Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=False)


async def test_empty_parts_of_a_message_cost_no_memory() -> None:
    async with _stuck() as (shell, transport):
        shell.data_received(Frame(Opcode.BINARY, b"\0\0", fin=False).serialize(mask=True))
        part = Frame(Opcode.CONT, b"", fin=False).serialize(mask=True) * 1000
        shell.data_received(part)
        await wait_until(lambda: not shell._resting)
        tracemalloc.start()
        try:
            for _ in range(20):
                shell.data_received(part)
                await wait_until(lambda: not shell._resting)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 20_000
        shell.data_received(Frame(Opcode.CONT, b"\0\0").serialize(mask=True))
        await wait_until(lambda: b"2 samples" in transport.written[-1])
