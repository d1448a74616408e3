"""Silence on the TCP port, with real sockets and the backplane in memory: when it ends a connection."""

from __future__ import annotations

import asyncio
import base64

import pytest

from tests.fake_backplane import ScriptedBackplane
from tests.ingress_harness import serving, wait_until

pytestmark = pytest.mark.one_loop


def _audio(num_samples: int, **more: object) -> dict[str, object]:
    return {"type": "audio", "data": base64.b64encode(b"\0\0" * num_samples).decode(), **more}


async def test_silence_is_no_fault_unless_a_timeout_was_asked_for() -> None:
    async with (
        serving(ScriptedBackplane(), idle_timeout_s=0.0) as patient,
        serving(ScriptedBackplane(), idle_timeout_s=0.1) as strict,
    ):
        silent = await patient.tcp()
        await silent.receive()
        client = await strict.tcp()
        await client.receive()
        (message,) = await client.receive_all()
        await client.close()
        assert message["code"] == "idle_timeout"
        # By then the other has been silent for longer.
        await silent.send({"type": "ping"})
        assert await silent.receive() == {"type": "pong"}
        await silent.close()


async def test_a_client_that_waits_for_its_admission_is_not_silent() -> None:
    backplane = ScriptedBackplane()
    backplane.gate.clear()
    async with serving(backplane, idle_timeout_s=2.0) as harness:
        client = await harness.tcp()
        await asyncio.sleep(3)
        backplane.gate.set()
        assert (await client.receive())["type"] == "hello"
        await client.send({"type": "ping"})
        assert await client.receive() == {"type": "pong"}
        assert (await client.receive())["code"] == "idle_timeout"
        await client.close()


async def test_a_client_that_is_not_read_is_not_silent() -> None:
    async with serving(ScriptedBackplane(echo=True), idle_timeout_s=2.0) as harness:
        client = await harness.tcp()
        await client.receive()
        link = harness.backplane.link
        link.room = False
        await client.send(_audio(10))
        assert (await client.receive())["text"] == "10 samples"
        await wait_until(lambda: link.log == ["begin", "append"])
        await asyncio.sleep(3)
        # From here on it is heard again, and has all of the time.
        link.listener.on_room()
        await asyncio.sleep(0.1)
        await client.send({"type": "ping"})
        assert await client.receive() == {"type": "pong"}
        assert (await client.receive())["is_final"] is True
        assert (await client.receive())["code"] == "idle_timeout"
        await client.close()


async def test_a_client_that_waits_for_resumed_is_not_silent() -> None:
    backplane = ScriptedBackplane(echo=True)
    async with serving(backplane, idle_timeout_s=2.0) as harness:
        client = await harness.tcp()
        await client.receive()
        backplane.gate.clear()
        request = {"type": "resume", "stream_id": 7, "resume_token": "old", "last_seq": 0}
        await client.send(request | {"audio_ack_samples": 0})
        await asyncio.sleep(3)
        backplane.gate.set()
        assert (await client.receive())["type"] == "resumed"
        await asyncio.sleep(0.1)
        await client.send({"type": "ping"})
        assert await client.receive() == {"type": "pong"}
        assert (await client.receive())["is_final"] is True
        assert (await client.receive())["code"] == "idle_timeout"
        await client.close()


@pytest.mark.parametrize("sent", [b"\n", b" "])
async def test_blank_lines_and_parts_of_a_line_are_no_silence(sent: bytes) -> None:
    async with serving(ScriptedBackplane(), idle_timeout_s=2.0) as harness:
        client = await harness.tcp()
        await client.receive()
        for _ in range(10):
            await asyncio.sleep(0.3)
            await client.send(sent)
        await client.send(b'{"type":"ping"}\n')
        assert await client.receive() == {"type": "pong"}
        await client.close()
