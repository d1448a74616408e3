"""A client that sends many small messages at once is heard in turns, with everything else in between."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse, Response
from websockets.asyncio.client import connect
from websockets.frames import Frame, Opcode

from ingress.clients.connection import Connection
from ingress.http.endpoints import endpoint
from ingress.http.front import Front
from ingress.sockets.shell import BYTES_A_TURN, MESSAGES_A_TURN
from ingress.sockets.tcp import TcpShell
from ingress.sockets.turns import Turn
from ingress.sockets.turns import Turns as QueuedTurns
from ingress.sockets.websocket import WebSocketShell
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import HANDSHAKE, HOST, TcpClient, serving, wait_until

NUM_MESSAGES = 1000


class Turns:
    """Counts the rounds of the event loop, and what is heard in each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = asyncio.get_running_loop()
        self.number = 0
        self.heard: Counter[int] = Counter()
        self.payloads: list[bytes] = []
        self._running = True
        received = Connection.received_text

        def note(connection: Connection, data: bytes) -> None:
            self.heard[self.number] += 1
            self.payloads.append(bytes(data))
            received(connection, data)

        monkeypatch.setattr(Connection, "received_text", note)
        self._tick()

    def _tick(self) -> None:
        self.number += 1
        if self._running:
            self.loop.call_soon(self._tick)

    def stop(self) -> None:
        self._running = False


@pytest.mark.parametrize("websocket", [False, True])
async def test_a_read_of_many_messages_is_many_turns(
    websocket: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads = [json.dumps({"type": "ping", "n": number}).encode() for number in range(NUM_MESSAGES)]
    async with serving(ScriptedBackplane()) as harness:
        client: TcpClient
        if websocket:
            client = await harness.raw_ws()
            await client.send(HANDSHAKE)
            data = b"".join(Frame(Opcode.TEXT, payload).serialize(mask=True) for payload in payloads)
        else:
            client = await harness.tcp()
            data = b"".join(payload + b"\n" for payload in payloads)
        await client.reader.readuntil(b'"hello"')
        turns = Turns(monkeypatch)
        client.writer.write(data)
        try:
            await wait_until(lambda: len(turns.payloads) == NUM_MESSAGES, 30.0)
        finally:
            turns.stop()
            await client.close()
        assert turns.payloads == payloads
        assert max(turns.heard.values()) <= MESSAGES_A_TURN


async def test_control_frames_have_turns_too() -> None:
    """A hundred thousand pings, none of whose answers is read, are a few rounds' wait for another client."""
    async with serving(ScriptedBackplane()) as harness, connect(harness.ws_url) as honest:
        await honest.recv()
        flooder = await harness.raw_ws()
        await flooder.send(HANDSHAKE)
        await flooder.reader.readuntil(b'"hello"')
        flooder.writer.write(Frame(Opcode.PING, b"").serialize(mask=True) * 100_000)
        shell = harness.shells[-1]
        await wait_until(lambda: shell._resting)
        await honest.send('{"type":"ping"}')
        async with asyncio.timeout(60):
            assert json.loads(await honest.recv())["type"] == "pong"
        assert shell._resting or flooder.writer.transport.get_write_buffer_size() > 0
        await flooder.close()


@pytest.mark.parametrize("port", ["tcp", "websocket", "http"])
async def test_a_large_read_is_a_turn(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uvloop hands on 32 reads of 256 KB in one round: a client that sends without end has one of them."""
    shell_class = {"tcp": TcpShell, "websocket": WebSocketShell, "http": Front}[port]
    received = shell_class.data_received  # type: ignore[attr-defined]
    turns: list[Turns] = []
    reads: Counter[int] = Counter()
    num_bytes = 0

    def note(shell: Any, data: bytes) -> None:
        nonlocal num_bytes
        if turns:
            num_bytes += len(data)
            reads[turns[0].number] += len(data) >= BYTES_A_TURN
        received(shell, data)

    async def body(request: StarletteRequest) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    line = json.dumps({"type": "ping", "fill": "x" * 10_000}).encode()
    head = b"POST /body HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n"
    begin, one = {
        "tcp": (b"", line + b"\n"),
        "websocket": (HANDSHAKE, Frame(Opcode.TEXT, line).serialize(mask=True)),
        "http": (head, bytes(10_000)),
    }[port]
    monkeypatch.setattr(shell_class, "data_received", note)  # before uvloop asks a protocol for it, once
    loop = asyncio.get_running_loop()
    async with serving(ScriptedBackplane(), endpoints=(endpoint("/body", body, "POST"),)) as harness:
        client = socket.create_connection((HOST, harness.tcp_port if port == "tcp" else harness.ws_port))
        harness.sockets.append(client)
        client.setblocking(False)
        await loop.sock_sendall(client, begin)
        if port != "http":
            told = b""
            while b'"hello"' not in told:
                told += await loop.sock_recv(client, 65_536)
        turns.append(Turns(monkeypatch))
        sent = 0
        with suppress(BlockingIOError):  # as much as there is room for, before the loop reads any
            while True:
                sent += client.send(one)
        try:
            await wait_until(lambda: num_bytes >= sent, 30.0)
        finally:
            turns[0].stop()
    assert sent > 8 * BYTES_A_TURN
    assert max(reads.values()) == 1


async def test_what_waits_for_its_turn_comes_before_the_end() -> None:
    backplane = ScriptedBackplane(echo=True)
    async with serving(backplane) as harness:
        client = await harness.tcp()
        await client.receive()
        await client.send(b'{"type":"audio","samples":[0.5]}\n' * 1000)
        client.writer.write_eof()
        received = await client.receive_all()
        assert received[-1]["text"] == "1000 samples"
        await client.close()


@pytest.mark.parametrize("websocket", [False, True])
async def test_a_large_message_is_heard_in_a_turn(websocket: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes to read it counts, and others come first where they wait."""
    line = json.dumps({"type": "ping", "fill": "x" * 2 * BYTES_A_TURN}).encode()
    async with serving(ScriptedBackplane(), max_line_bytes=100_000, max_frame_bytes=100_000) as harness:
        client = await (harness.raw_ws() if websocket else harness.tcp())
        if websocket:
            await client.send(HANDSHAKE)
        await client.reader.readuntil(b'"hello"')
        await wait_until(lambda: not harness.shells[-1]._resting)
        waiting: list[Turn] = []
        monkeypatch.setattr(QueuedTurns, "at_once", lambda turns, turn: False)
        monkeypatch.setattr(QueuedTurns, "ask", lambda turns, turn: waiting.append(turn))
        heard: list[bytes] = []
        monkeypatch.setattr(Connection, "received_text", lambda connection, data: heard.append(bytes(data)))
        await client.send(Frame(Opcode.TEXT, line).serialize(mask=True) if websocket else line + b"\n")

        def is_heard() -> bool:
            assert len(waiting) <= 1
            while waiting:
                assert not heard
                waiting.pop()()
            return bool(heard)

        await wait_until(lambda: bool(waiting))
        await wait_until(is_heard)
        assert heard == [line]
        client.writer.transport.abort()


@pytest.mark.parametrize("is_at_once", [True, False])
async def test_audio_in_a_large_read_pays_for_its_turn(
    is_at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(ScriptedBackplane()) as harness:
        client = await harness.tcp()
        await client.receive()
        shell = harness.shells[-1]
        await wait_until(lambda: not shell._resting)
        if not is_at_once:
            monkeypatch.setattr(QueuedTurns, "at_once", lambda turns, turn: False)
        earned: list[float] = []
        monkeypatch.setattr(QueuedTurns, "earn", lambda turns, audio_s: earned.append(audio_s))
        message = json.dumps({"type": "audio", "data": base64.b64encode(bytes(3200)).decode()})
        # Handed over as one read, however the system would cut it.
        shell.data_received(f"{message}\n".encode() * 10)
        await wait_until(lambda: sum(earned) > 0)
        assert earned == [pytest.approx(1.0)]
        await client.close()


@pytest.mark.parametrize("port", ["tcp", "websocket", "http"])
async def test_what_a_refused_client_sends_is_read_in_turns(
    port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read on, so that it has its answer, and nobody else waits for that."""
    fault = {
        "tcp": b"no JSON\n",
        "websocket": Frame(Opcode.TEXT, b"no JSON").serialize(mask=True),
        "http": b"no request\r\n\r\n",
    }[port]
    async with serving(ScriptedBackplane()) as harness:
        refused = await (harness.tcp() if port == "tcp" else harness.raw_ws())
        if port == "websocket":
            await refused.send(HANDSHAKE)
        if port != "http":
            await refused.reader.readuntil(b'"hello"')
        await refused.send(fault)
        await wait_until(lambda: bool(harness.transports))
        protocol: Any = harness.transports[0].get_protocol()
        await wait_until(lambda: protocol._over if port == "http" else protocol._closing)
        asked: list[Turn] = []
        ask = QueuedTurns.ask

        def note(turns: QueuedTurns, turn: Turn) -> None:
            asked.append(turn)
            ask(turns, turn)

        monkeypatch.setattr(QueuedTurns, "ask", note)
        with suppress(ConnectionError):
            for _ in range(64):
                await refused.send(bytes(BYTES_A_TURN))
                await refused.writer.drain()
                if asked:
                    break
                await asyncio.sleep(0.01)
        assert asked == [protocol._next_turn]
        refused.writer.transport.abort()


async def test_a_body_in_tiny_parts_is_parsed_for_a_turn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read of 256 KB may hold 40,000 of them; those that came behind are heard later, and in order."""
    monkeypatch.setattr("ingress.http.front.TURN_S", 0.0)
    seen: list[int] = []
    hear = Front._hear

    def note(front: Front) -> None:
        before = front._num_parts
        hear(front)
        seen.append(front._num_parts - before)

    monkeypatch.setattr(Front, "_hear", note)

    async def body(request: StarletteRequest) -> Response:
        return PlainTextResponse(await request.body())

    text = b"".join(b"%04d" % number for number in range(900))
    head = b"POST /body HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with serving(ScriptedBackplane(), endpoints=(endpoint("/body", body, "POST"),)) as harness:
        client = await harness.raw_ws()
        client.writer.write(head + b"".join(b"1\r\n%c\r\n" % byte for byte in text) + b"0\r\n\r\n")
        async with asyncio.timeout(60):
            answer = await client.reader.read()
        await client.close()
    assert answer.endswith(b"\r\n\r\n" + text)
    assert len(seen) > 4
    assert max(seen) < 1000
