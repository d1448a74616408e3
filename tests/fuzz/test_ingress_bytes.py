"""Random bytes on the ports of an ingress never crash it and never hurt a neighbour."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.frames import Frame, Opcode

from tests.fake_backplane import ScriptedBackplane
from tests.fuzz.mutated_bytes import mutated
from tests.ingress_harness import Harness, serving, wait_until

_ATTACKS_PER_SEED = 60

_SEEDS_OF_MUTATION = (
    b'{"type":"audio","data":"AAAA","encoding":"pcm16"}\n',
    b'{"type":"audio","samples":[0.1,-0.5,1],"final":true}\n',
    b'{"type":"config","words":true}\n',
    b'{"type":"resume","stream_id":1,"resume_token":"t","last_seq":0,"audio_ack_samples":0}\n',
    b'{"type":"ping"}\n{"type":"close"}\n',
)
_HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def _frame(source: random.Random) -> bytes:
    opcode = source.choice((Opcode.TEXT, Opcode.BINARY, Opcode.CONT, Opcode.PING))
    payload = source.choice(_SEEDS_OF_MUTATION)[: source.randint(0, 120)]
    whole = opcode is Opcode.PING or source.random() < 0.8
    return Frame(opcode, payload, fin=whole).serialize(mask=True)


def _attack(source: random.Random, *, websocket: bool) -> bytes:
    if not websocket:
        if source.random() < 0.3:
            return source.randbytes(source.randint(1, 3000))
        return b"".join(mutated(source, source.choice(_SEEDS_OF_MUTATION)) for _ in range(3))
    handshake = _HANDSHAKE if source.random() < 0.8 else mutated(source, _HANDSHAKE)
    frames = b"".join(_frame(source) for _ in range(source.randint(1, 5)))
    return handshake + (mutated(source, frames) if source.random() < 0.7 else frames)


async def _one_attack(harness: Harness, source: random.Random) -> None:
    websocket = source.random() < 0.5
    client = await (harness.raw_ws() if websocket else harness.tcp())
    data = _attack(source, websocket=websocket)
    try:
        at = 0
        while at < len(data):
            size = source.choice((1, 7, 100, 5000))
            client.writer.write(data[at : at + size])
            await client.writer.drain()
            at += size
            if source.random() < 0.2:
                await asyncio.sleep(0)
        if source.random() < 0.5:
            client.writer.write_eof()
            async with asyncio.timeout(1):
                await client.reader.read(100_000)
    except (OSError, TimeoutError):
        pass  # the server may well have hung up
    finally:
        client.writer.transport.abort()


async def _neighbour(harness: Harness, stop: asyncio.Event) -> list[dict[str, Any]]:
    """An honest client, which streams all the while."""
    results = []
    async with connect(harness.ws_url) as client:
        await client.recv()
        while not stop.is_set():
            await client.send(b"\0\0" * 160)
            results.append(json.loads(await client.recv()))
            await asyncio.sleep(0)
        await client.send('{"type":"close"}')
        results.append(json.loads(await client.recv()))
    return results


@pytest.mark.parametrize("seed", range(4))
async def test_random_bytes_hurt_nobody(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    source = random.Random(seed)
    async with serving(ScriptedBackplane(echo=True), max_line_bytes=4096, max_frame_bytes=4096) as harness:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            neighbour = tasks.create_task(_neighbour(harness, stop))
            for _ in range(_ATTACKS_PER_SEED):
                await _one_attack(harness, source)
            stop.set()
        results = neighbour.result()
        assert [result["seq"] for result in results] == list(range(1, len(results) + 1))
        assert results[-1]["is_final"]
        assert results[-1]["text"] == f"{160 * (len(results) - 1)} samples"
        await wait_until(lambda: not harness.connections)
        for link in harness.backplane.links:
            assert link.log[-1] in ("abandon", "keep", "release")
    # Whatever a client sends is its fault and has a code; nothing is a surprise to the server.
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def _flood(source: random.Random) -> bytes:
    """Frames that cost a client next to nothing, once a message has begun: pings, and parts of it."""
    kinds = (
        Frame(Opcode.PING, source.randbytes(source.randint(0, 125))),
        Frame(Opcode.PONG, b""),
        Frame(Opcode.CONT, b"", fin=False),
    )
    frames = source.choices(kinds, weights=[1, source.random(), source.random()], k=300)
    return b"".join(frame.serialize(mask=True) for frame in frames)


@pytest.mark.parametrize("seed", range(4))
async def test_a_flood_from_a_client_that_does_not_read_is_held_in_bounds(seed: int) -> None:
    source = random.Random(seed)
    async with serving(ScriptedBackplane(echo=True), max_frame_bytes=4096) as harness:
        client = await harness.raw_ws()
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.writer.write(_HANDSHAKE)
        await client.reader.readuntil(b"\r\n\r\n")
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        (server,) = harness.transports
        server.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client.writer.write(Frame(Opcode.TEXT, b"", fin=False).serialize(mask=True))
        most = 0
        for _ in range(200):
            client.writer.write(_flood(source))
            await client.writer.drain()
            await asyncio.sleep(0)
            most = max(most, server.get_write_buffer_size())
        # It was full, and has not drained to the quarter at which writing goes on.
        assert 8 * 1024 < most < 33 * 1024
        client.writer.transport.abort()
