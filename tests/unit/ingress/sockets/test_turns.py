"""A client that sends many small messages at once is heard in turns, with everything else in between."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest
from websockets.asyncio.client import connect
from websockets.frames import Frame, Opcode

from ingress.connection import Connection
from ingress.sockets.shell import MESSAGES_A_TURN
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import HANDSHAKE, TcpClient, serving, wait_until

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
        async with asyncio.timeout(5):
            assert json.loads(await honest.recv())["type"] == "pong"
        assert shell._resting or flooder.writer.transport.get_write_buffer_size() > 0
        await flooder.close()


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
