"""What a connection that does not read costs: the bytes of one read, whatever its client sends."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import cast

import pytest
from websockets.frames import Frame, Opcode

from ingress.sockets.shell import SocketShell
from ingress.sockets.tcp import TcpShell
from ingress.sockets.websocket import WebSocketShell
from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import HANDSHAKE, HOST, Harness, serving, wait_until

# Both loops read at most so much at once.
_ONE_READ_BYTES = 256 * 1024


def _held_bytes(shell: SocketShell) -> int:
    """What has come and was not handed on."""
    reader = shell._reader if isinstance(shell, TcpShell) else cast(WebSocketShell, shell)._frames
    return len(reader._held)


async def _flood(harness: Harness, port: int, begin: bytes, message: bytes, total_bytes: int) -> bytes:
    """Send until the server takes no more for half a second; returns what is left of `total_bytes`."""
    loop = asyncio.get_running_loop()
    client = socket.create_connection((HOST, port))
    client.setblocking(False)
    harness.sockets.append(client)
    await loop.sock_sendall(client, begin)
    left = memoryview(message * (total_bytes // len(message)))
    blocked = 0
    while left and blocked < 50:
        try:
            left = left[client.send(left) :]
            blocked = 0
        except BlockingIOError:
            blocked += 1
        await asyncio.sleep(0.01)
    return bytes(left)


@pytest.mark.parametrize("websocket", [False, True])
@pytest.mark.parametrize("payload", [b"x", b'{"type":"ping"}', b"x" * 5000])
async def test_a_flood_before_the_admission_is_held_as_bytes_of_one_read(
    websocket: bool, payload: bytes
) -> None:
    backplane = ScriptedBackplane()
    backplane.gate.clear()
    async with serving(backplane) as harness:
        message = Frame(Opcode.TEXT, payload).serialize(mask=True) if websocket else payload + b"\n"
        port = harness.ws_port if websocket else harness.tcp_port
        begin = HANDSHAKE if websocket else b""
        left = await _flood(harness, port, begin, message, 20_000_000)
        assert len(left) > 5_000_000, "the server took nearly all of it"
        (shell,) = harness.shells
        assert _held_bytes(shell) <= _ONE_READ_BYTES


async def test_what_was_held_comes_in_order_and_once() -> None:
    backplane = ScriptedBackplane(echo=True)
    backplane.gate.clear()
    async with serving(backplane) as harness:
        client = await harness.tcp()
        await client.send(b'{"type":"audio","samples":[0.5]}\n' * 2000)
        await client.send({"type": "close"})
        client.writer.write_eof()
        backplane.gate.set()
        received = await client.receive_all()
        await client.close()
        assert [message.get("text") for message in received[1:]] == [
            f"{n} samples" for n in (*range(1, 2001), 2000)
        ]
        assert backplane.link.log == ["begin", *["append"] * 2000, "final", "release"]


async def test_an_end_of_file_before_the_admission_is_not_forgotten() -> None:
    backplane = ScriptedBackplane()
    backplane.gate.clear()
    async with serving(backplane) as harness:
        client = await harness.tcp()
        client.writer.write_eof()
        await wait_until(lambda: bool(harness.connections))
        backplane.gate.set()
        received = await client.receive_all()
        await client.close()
        assert [message["type"] for message in received] == ["hello"]
        await wait_until(lambda: backplane.link.log == ["abandon"])


@pytest.mark.parametrize("websocket", [False, True])
async def test_a_full_audio_buffer_stops_in_the_middle_of_a_read(websocket: bool) -> None:
    async with serving(ScriptedBackplane()) as harness:
        client = await (harness.raw_ws() if websocket else harness.tcp())
        if websocket:
            await client.send(HANDSHAKE)
        await wait_until(lambda: bool(harness.backplane.links))
        link = harness.backplane.link
        link.room = False
        audio = json.dumps({"type": "audio", "samples": [0.5]}).encode()
        message = Frame(Opcode.TEXT, audio).serialize(mask=True) if websocket else audio + b"\n"
        await client.send(message * 3)
        for number in (1, 2, 3):
            await wait_until(lambda number=number: link.log == ["begin", *["append"] * number])  # type: ignore[misc]
            (shell,) = harness.shells
            assert _held_bytes(shell) == (3 - number) * len(message)
            link.listener.on_room()
        await client.close()
