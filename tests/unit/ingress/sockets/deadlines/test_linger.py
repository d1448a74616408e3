"""How a closed connection ends: a slow reader has all that was sent, and nobody is waited for long."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from common.entries import LineKind
from ingress.sockets import linger
from tests.certificates import Authority
from tests.fake_backplane import ScriptedBackplane, some_result
from tests.ingress_harness import HANDSHAKE, HOST, Harness, serving, wait_until

_TEXT = "word " * 800_000  # a final result of 4 MB


async def _connected(harness: Harness, port: int) -> socket.socket:
    """A client's socket with a small buffer: what it has not read is still the server's."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    client.setblocking(False)
    harness.sockets.append(client)
    await asyncio.get_running_loop().sock_connect(client, (HOST, port))
    return client


async def _final_on_its_way(harness: Harness, *, websocket: bool) -> socket.socket:
    """A client with small buffers that has closed its stream, and was sent a long final result."""
    loop = asyncio.get_running_loop()
    client = await _connected(harness, harness.ws_port if websocket else harness.tcp_port)
    close = b'{"type":"close"}'
    if websocket:
        await loop.sock_sendall(client, HANDSHAKE + Frame(Opcode.TEXT, close).serialize(mask=True))
    else:
        await loop.sock_sendall(client, close + b"\n")
    await wait_until(lambda: bool(harness.backplane.links))
    await wait_until(lambda: "final" in harness.backplane.link.log)
    link = harness.backplane.link
    link.listener.on_result(LineKind.FINAL, some_result(1, _TEXT, final=True))
    return client


async def _read(client: socket.socket, seconds: float) -> bytes:
    """Read to the end, at a rate at which `_TEXT` takes about so long."""
    loop = asyncio.get_running_loop()
    parts: list[bytes] = []
    pause_s = seconds / (len(_TEXT) / 65536)
    while True:
        async with asyncio.timeout(60):
            part = await loop.sock_recv(client, 65536)
        if not part:
            return b"".join(parts)
        parts.append(part)
        await asyncio.sleep(pause_s)


@pytest.mark.parametrize("websocket", [False, True])
async def test_a_long_final_is_read_to_its_end_however_slowly(
    websocket: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linger, "LINGER_S", 1.0)
    async with serving(ScriptedBackplane()) as harness:
        client = await _final_on_its_way(harness, websocket=websocket)
        data = await _read(client, 3)
        if websocket:
            assert data.endswith(Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=False))
            assert data.count(b"word ") == 800_000
        else:
            message: dict[str, Any] = json.loads(data.splitlines()[-1])
            assert message["is_final"]
            assert message["text"] == _TEXT
        await wait_until(lambda: not harness.connections)


async def test_a_long_final_is_read_to_its_end_over_tls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The client's own TLS buffers hold what it takes some tenths of a second to read.
    monkeypatch.setattr(linger, "LINGER_S", 2.0)
    monkeypatch.setattr("ingress.sockets.shell.UNREAD_TIMEOUT_S", 2.5)
    authority = Authority(tmp_path)
    signed = authority.sign()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(signed.certificate, signed.key)
    client = ssl.create_default_context(cafile=str(authority.certificate))
    async with serving(ScriptedBackplane(), tls=server) as harness:
        connection = await _connected(harness, harness.tcp_port)
        reader, writer = await asyncio.open_connection(
            sock=connection, ssl=client, server_hostname="localhost"
        )
        writer.write(b'{"type":"close"}\n')
        await wait_until(lambda: bool(harness.backplane.links) and "final" in harness.backplane.link.log)
        harness.backplane.link.listener.on_result(LineKind.FINAL, some_result(1, _TEXT, final=True))
        data = bytearray()
        async with asyncio.timeout(60):
            while part := await reader.read(65536):
                data += part
                await asyncio.sleep(5 / (len(_TEXT) / 65536))
        assert json.loads(data.splitlines()[-1])["text"] == _TEXT
        writer.close()
        await wait_until(lambda: not harness.connections)


async def test_a_client_that_reads_nothing_of_it_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "LINGER_S", 0.05)
    monkeypatch.setattr("ingress.sockets.shell.UNREAD_TIMEOUT_S", 0.3)
    async with serving(ScriptedBackplane(), unread_timeout_s=60) as harness:
        began = time.monotonic()
        await _final_on_its_way(harness, websocket=False)
        await wait_until(lambda: not harness.connections)
        assert time.monotonic() - began > 0.3


async def test_a_client_that_has_all_and_does_not_close_is_not_waited_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linger, "LINGER_S", 0.1)
    async with serving(ScriptedBackplane(echo=True)) as harness:
        client = await harness.tcp()
        await client.send({"type": "close"})
        assert [m["type"] for m in await client.receive_all()] == ["hello", "result"]
        await wait_until(lambda: not harness.connections)
        await client.close()


async def test_a_websocket_that_is_half_closed_and_not_read_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linger, "LINGER_S", 0.05)
    monkeypatch.setattr("ingress.sockets.shell.UNREAD_TIMEOUT_S", 0.3)
    async with serving(ScriptedBackplane(), unread_timeout_s=60) as harness:
        client = await _final_on_its_way(harness, websocket=True)
        client.shutdown(socket.SHUT_WR)
        await wait_until(lambda: all(transport.is_closing() for transport in harness.transports))
        await wait_until(lambda: not harness.connections)
        await wait_until(lambda: all(shell._transport is None for shell in harness.shells))
